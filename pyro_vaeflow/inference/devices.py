"""The device that rows and programs are on: whether this machine has it, and the way there."""

import pyro
import torch

from pyro_vaeflow.inference.parameters import Program, modules, param_scope
from pyro_vaeflow.validation import ConfigError

Device = str | torch.device


def check_device(device: Device) -> torch.device:
    """The device, once a number has been there and back: in double precision, as scores are.

    Raises:
        ConfigError: torch cannot do that on this machine; the message says why.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device).cpu()
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:  # as builds differ
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device must be one that this machine has, got {str(device)!r} ({reason:.200}); "
            "device='cpu' is always there"
        ) from error
    return torch.device(device)


def move(model: Program, guide: Program, device: torch.device) -> None:
    """Takes a pair to the device, in place: its modules, and its parameters of ``pyro.param``."""
    for module in modules(model, guide):
        module.to(device)
    with param_scope(model, guide):
        for _, value in pyro.get_param_store().named_parameters():
            value.data = value.data.to(device)  # as modules do it: the tensor stays the parameter

"""Functions of tensors as operations of torch's dispatcher."""

from collections.abc import Callable
from typing import Any

import torch


def operation(function: Callable[..., Any]) -> Any:
    """Makes `function` one operation for whatever sees torch's, as a recorded training step does.

    All layers of a flow are then one entry of the record, whose every entry costs more of Python
    than a call from the function does. It must change no argument and return no view of one.
    """
    name = f"pyro_vaeflow::{function.__name__.strip('_')}"
    known = torch.library.custom_op(name, function, mutates_args=())
    known.register_fake(function)  # for tensors without numbers, as on the device "meta"
    return known

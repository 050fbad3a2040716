"""Everything that training leaves in two programs, as named tensors, and back."""

from collections.abc import Iterator, Mapping

import pyro
import torch
from torch import nn

from pyro_vaeflow.inference.contract import run_once
from pyro_vaeflow.inference.parameters import Program, modules, param_scope

PLAIN = "#"  # before a tensor that a module holds as an attribute, outside its state dict


class CheckpointError(ValueError):
    """Files or tensors that are not what was saved; the message names which."""


def state_of(model: Program, guide: Program) -> dict[str, torch.Tensor]:
    """The tensors of a pair: ``model.*`` and ``guide.*`` of modules, ``param.*`` of ``pyro.param``.

    Buffers too, and what modules hold as attributes, such as the permutations of Pyro's
    autoregressive networks.
    """
    state: dict[str, torch.Tensor] = {}
    for role, program in (("model", model), ("guide", guide)):
        for module in modules(program):
            state |= {f"{role}.{k}": v for k, v in module.state_dict().items()}
            state |= {f"{role}.{k}": getattr(part, name) for k, part, name in _plain(module)}
    state |= {f"param.{name}": value.detach() for name, value in _stored(model, guide).items()}
    return {name: value.contiguous() for name, value in state.items()}


def restore(model: Program, guide: Program, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts the tensors of `state_of` into programs of the same make.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape or dtype is another.
    """
    check_fits(state_of(model, guide), tensors)
    with torch.no_grad():
        for role, program in (("model", model), ("guide", guide)):
            for module in modules(program):
                names = module.state_dict()
                module.load_state_dict({k: tensors[f"{role}.{k}"] for k in names})
                for key, part, name in _plain(module):
                    setattr(part, name, tensors[f"{role}.{key}"].clone())
        with param_scope(model, guide):
            for name, value in _stored(model, guide).items():
                value.copy_(tensors[f"param.{name}"])


def make_parameters(model: Program, guide: Program, x: torch.Tensor) -> None:
    """Runs the programs on the rows `x`, so that their ``pyro.param`` exist to be restored."""
    with param_scope(model, guide), torch.no_grad():
        run_once(model, guide, (x,))


def check_fits(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuses tensors whose names, shapes and dtypes are not the expected ones, by name."""
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unknown:
        raise CheckpointError(
            f"the tensors are not those of these programs: missing {sorted(missing)[:5]}, unknown "
            f"{sorted(unknown)[:5]}"
        )
    for name, value in expected.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (value.shape, value.dtype):
            raise CheckpointError(
                f"tensor {name!r}: expected shape {tuple(value.shape)} and {value.dtype}, got "
                f"{tuple(found.shape)} and {found.dtype}"
            )


def _plain(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, owner and attribute of each tensor outside the state dict; caches are private."""
    for path, part in module.named_modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor) and not name.startswith("_"):
                yield f"{path}{PLAIN}{name}", part, name


def _stored(model: Program, guide: Program) -> dict[str, torch.Tensor]:
    """The pair's unconstrained parameters in Pyro's store, without those of its modules."""
    of_modules = {id(p) for module in modules(model, guide) for p in module.parameters()}
    with param_scope(model, guide):
        found = dict(pyro.get_param_store().named_parameters())
    return {name: value for name, value in found.items() if id(value) not in of_modules}

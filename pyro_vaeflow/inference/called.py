"""The modules that programs call: whose parameters Pyro must be told of."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vaeflow.inference.parameters import Program, module_mode, seeded
from pyro_vaeflow.inference.traces import Args, run_once


@contextmanager
def called_modules() -> Iterator[dict[torch.nn.Module, None]]:
    """The modules that are called inside, each once, in order."""
    called: dict[torch.nn.Module, None] = {}

    def note(part: torch.nn.Module, *_: Any) -> None:
        if not torch.compiler.is_compiling():  # no hook is called inside what was compiled
            called.update(dict.fromkeys(part.modules() if "_orig_mod" in part._modules else [part]))

    with register_module_forward_pre_hook(note):
        yield called


def make_parameters(
    model: Program, guide: Program, batch: Args, seed: int
) -> list[torch.nn.Module]:
    """Runs the programs on a whole batch, for start values taken from it; the modules called."""
    with module_mode(model, guide, training=False), seeded(seed), torch.no_grad():
        with called_modules() as called:
            run_once(model, guide, batch)
    return list(called)


def check_announced(called: Iterable[torch.nn.Module], parameters: dict[str, torch.Tensor]) -> None:
    """Refuses programs that compute with parameters which nothing has shown to Pyro.

    Args:
        called: the modules that the programs call.
        parameters: those that will be trained.

    Raises:
        ValueError: a module has others; Pyro would silently leave them as they are.
    """
    known = {id(value) for value in parameters.values()}
    hidden = [
        f"{type(part).__name__}.{name}"
        for part in called
        for name, value in part.named_parameters(recurse=False)
        if value.requires_grad and id(value) not in known
    ]
    if hidden:
        raise ValueError(
            f"the programs compute with parameters that nothing shows to Pyro, which would stay as "
            f"they are: {', '.join(hidden[:3])}{', ...' if len(hidden) > 3 else ''}; say "
            "pyro.module('net', net) in the program, or net.requires_grad_(False) to keep them"
        )

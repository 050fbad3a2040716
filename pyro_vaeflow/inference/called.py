"""The modules that programs call, and what Pyro must be told of their parameters."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
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


class UnseenParams(Messenger):
    """Shows ``pyro.param`` statements to no handler outside: they then cost next to nothing.

    Two modules make a dozen a run, and each would go through eight handlers and back.
    """

    def _process_message(self, msg: Message) -> None:
        msg["stop"] = msg["stop"] or msg["type"] == "param"

    def _postprocess_message(self, msg: Message) -> None:
        pass


def without_names(program: Program) -> Program:
    """The program without Pyro's context of a module, where that would only name its parameters.

    In that context each part that a ``PyroModule`` reaches for makes a param statement for each of
    its parameters: a sixth of what a step takes beside its arithmetic. A module that has a
    ``PyroParam`` or ``PyroSample`` needs it and is left alone.
    """
    if not isinstance(program, PyroModule) or type(program).__call__ is not PyroModule.__call__:
        return program
    parts = [part for part in program.modules() if isinstance(part, PyroModule)]
    if any(part._pyro_params or part._pyro_samples for part in parts):
        return program
    return partial(torch.nn.Module.__call__, program)

"""What a training asks of a group of processes, and what it says when it has lost them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from pyro_vaeflow.fingerprint import fingerprint
from pyro_vaeflow.group import Group, GroupError
from pyro_vaeflow.isolation import Program, modules


def check_group(group: Group, batch_size: int, model: Program, guide: Program) -> None:
    """Refuses what a group cannot train as one process would.

    Raises:
        ValueError: there are fewer rows in a batch than processes, or a module mixes rows.
    """
    if group.size == 1:
        return
    if batch_size < group.size:
        raise ValueError(
            f"batch_size={batch_size} leaves none of its rows to some of the {group.size} "
            "processes; each needs one at least"
        )
    for module in modules(model, guide):
        for name, part in module.named_modules():
            if isinstance(part, _BatchNorm):
                raise ValueError(
                    f"module {name!r} ({type(part).__name__}) would see the rows of one process "
                    "alone; use LayerNorm, or train in one process"
                )


def check_call(group: Group, call: Mapping[str, Any]) -> None:
    """Refuses a call that is not that of the group's first process.

    Args:
        call: what `train` was asked to do.

    Raises:
        GroupError: names what differs.
    """
    if group.size == 1:
        return
    own = fingerprint(call)
    first, _ = group.from_first(own, {})
    if others := [name for name, value in own.items() if first[name] != value]:
        raise GroupError(
            f"process {group.rank} of {group.size} was not given the same {', '.join(others)} as "
            "process 0; each needs all rows and the same arguments"
        )


@contextmanager
def lost_group(checkpoint: Any) -> Iterator[None]:
    """Adds to a `GroupError` where to go on from.

    Args:
        checkpoint: what `train` was given.
    """
    try:
        yield
    except GroupError as error:
        advice = "without a checkpoint, training has to begin anew"
        if checkpoint is not None:
            folder = getattr(checkpoint, "folder", checkpoint)
            advice = f"start all processes again, and they go on from the checkpoint in {folder}"
        raise GroupError(f"{error}; {advice}") from error

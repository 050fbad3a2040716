"""What a training asks of a group of processes, and what it says when it has lost them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_vaeflow.inference.fingerprint import fingerprint
from pyro_vaeflow.inference.group import Group, GroupError
from pyro_vaeflow.inference.resume import folder_of


def check_group(group: Group, call: Mapping[str, Any], called: Sequence[nn.Module]) -> None:
    """Refuses what a group cannot train as one process would.

    Args:
        call: what `train` was asked to do; of each process the same.
        called: the modules that the programs call.

    Raises:
        ValueError: names what differs from the first process's call, or the module that mixes rows;
            or there are fewer rows in a batch than processes.
    """
    if group.size == 1:
        return
    if call["batch_size"] < group.size:
        raise ValueError(
            f"batch_size={call['batch_size']} leaves none of its rows to some of the {group.size} "
            "processes; each needs one at least"
        )
    for module in called:
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"{type(module).__name__} would see the rows of one process alone; use LayerNorm, "
                "or train in one process"
            )
    own = fingerprint(call)
    first, _ = group.from_first(own, {})
    if others := [name for name, value in own.items() if first[name] != value]:
        raise ValueError(
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
            folder = folder_of(checkpoint)
            advice = f"start all processes again, and they go on from the checkpoint in {folder}"
        raise GroupError(f"{error}; {advice}") from error

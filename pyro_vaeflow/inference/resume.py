"""Training that goes on where a killed or interrupted process left it, to the very same end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyro_vaeflow.inference.checkpoint import Files, check_keys, read, write
from pyro_vaeflow.inference.fingerprint import fingerprint, structure
from pyro_vaeflow.inference.group import ALONE, Group
from pyro_vaeflow.inference.run_state import Run
from pyro_vaeflow.inference.state import CheckpointError
from pyro_vaeflow.inference.versions import package_versions
from pyro_vaeflow.validation import check_size

FILES = Files("training.json", "training")
LEAST_EVERY = 500  # steps
KEYS = ("call", "finished", "best", "optimizer", "random", "constraints")


class CheckpointInUseError(CheckpointError):
    """Another process trains into the folder."""


@dataclass(frozen=True)
class Checkpoint:
    """Where `train` keeps all that it needs to go on after it was killed, and how often.

    Args:
        folder: of this training alone; it is made if it is not there.
        every: steps from one writing to the next: a fiftieth of the training by default, and at
            least 500.

    Example:
        >>> Checkpoint("runs/first", every=1000).every
        1000
    """

    folder: str | Path
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            check_size("every", self.every)


def folder_of(checkpoint: Checkpoint | str | Path) -> str | Path:
    """The folder, as it was given, of what `train` takes as its checkpoint."""
    return checkpoint.folder if isinstance(checkpoint, Checkpoint) else checkpoint


class Keeper:
    """Writes a run's checkpoints, and goes on from the one that is there; without a folder neither.

    Args:
        call: what `train` was asked to do: its arguments by name.

    Attributes:
        finished: whether the run was taken up where it had already come to its end.
    """

    def __init__(self, folder: Path | None, every: int, call: dict[str, Any]) -> None:
        self.folder, self.every, self.call = folder, every, call
        self.finished = False
        self.versions: dict[str, str] = {}

    def take_up(self, run: Run, group: Group = ALONE) -> None:
        """Looks after `run` from now on, and lets it go on from the folder's checkpoint, if any.

        All processes of the group go on from what the first one has, be it a start of its own.

        Raises:
            CheckpointError: the checkpoint is of another training, or is damaged.
        """
        self.run = run
        kept = self._kept(run)
        if group.size > 1:
            kept = group.from_first(*(kept or run.to_save()))
        if kept is None:
            return
        content, tensors = kept
        try:
            run.take_up(content, tensors)
        except CheckpointError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.folder} does not hold a training: {error!r}") from error
        self.finished = content.get("finished") is True

    def _kept(self, run: Run) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """What the folder's checkpoint holds of this training; None if there is none."""
        if self.folder is None:
            return None
        self.versions = package_versions()
        self.call = fingerprint(self.call) | {
            "optimizer": repr(run.optim.torch_optimizer),
            "model": structure(run.model),
            "guide": structure(run.guide),
        }
        if not (self.folder / FILES.content).exists():
            return None
        content, tensors = read(self.folder, FILES)
        check_keys(content, KEYS, "content")
        self._check_call(content)
        return content, tensors

    def after(self, step: int) -> None:
        """Writes a checkpoint if one is due after this step."""
        if self.folder is not None and (step + 1) % self.every == 0:
            self._write(self.folder, *self.run.to_save())

    def end(self, finished: bool) -> None:
        """Leaves the programs in their best state, and a checkpoint to go on from.

        Args:
            finished: whether there is no step to come.
        """
        if self.folder is None or self.finished:
            self.run.best.restore()
            return
        kept = self.run.to_save()
        self.run.best.restore()
        self._write(self.folder, *kept, finished)

    def _write(
        self,
        folder: Path,
        content: dict[str, Any],
        tensors: dict[str, torch.Tensor],
        finished: bool = False,
    ) -> None:
        content |= {"call": self.call, "finished": finished}
        try:
            write(folder, content, tensors, self.versions, FILES)
        except OSError as error:
            raise OSError(
                f"the checkpoint in {folder} could not be written ({error}); the one before it, if "
                "any, is whole: mend the disk, and the same call goes on from there"
            ) from error

    def _check_call(self, content: Mapping[str, Any]) -> None:
        found = content["call"]
        check_keys(found, tuple(self.call), "call")
        others = [name for name, value in self.call.items() if found[name] != value]
        if "num_steps" in others:  # then there are as many values of the schedules
            others = [name for name in others if name not in ("learning_rate", "schedule")]
        if others:
            raise CheckpointError(
                f"{self.folder} is of another training: not the same {', '.join(others)}. Make the "
                "call as it was, choose another folder, or remove this one"
            )


@contextmanager
def keeping(checkpoint: Checkpoint | str | Path | None, call: dict[str, Any]) -> Iterator[Keeper]:
    """A keeper that has the checkpoint's folder for itself.

    Raises:
        CheckpointInUseError: another process has it.
        OSError: it cannot be written to.
    """
    if checkpoint is None:
        yield Keeper(None, 0, call)
        return
    import fcntl  # not on Windows, where all else of training runs

    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    folder = Path(checkpoint.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise OSError(f"no checkpoint can be written to {folder} ({error})") from error
    with file as lock:  # released when the process dies, however it does
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointInUseError(
                f"{folder} is in use by another process; wait for it, or choose another folder"
            ) from None
        for partial in folder.glob(f".{FILES.tensors}*.partial"):  # of a killed process
            partial.unlink()
        yield Keeper(folder, checkpoint.every or max(LEAST_EVERY, call["num_steps"] // 50), call)

"""Checkpoints: all that a training saves, to be resumed to the very same end after a kill."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch.distributions import constraints

from pyro_vaeflow.inference.callbacks import RECORD, Callback, Run
from pyro_vaeflow.inference.fingerprint import fingerprint
from pyro_vaeflow.inference.parameters import modules
from pyro_vaeflow.inference.saved_folder import (
    CheckpointError,
    check_keys,
    is_plain,
    read,
    restore,
    state_of,
    write,
)
from pyro_vaeflow.locks import hold_lock
from pyro_vaeflow.validation import check_size

LEAST_EVERY = 500  # steps
CONSTRAINTS = {
    name: value
    for name in constraints.__all__
    if isinstance(value := getattr(constraints, name), constraints.Constraint)
}


class CheckpointInUseError(CheckpointError):
    """Another process trains into the folder."""


class Checkpoint(Callback):
    """Keeps what `train` needs to resume after it was killed: ``train(..., checkpoint=folder)``.

    Args:
        folder: of this training alone; it is made if it is not there.
        every: steps from one writing to the next: by default a fiftieth of all, and at least 500.

    Raises:
        ValueError: `every` is below 1.
        CheckpointError: at the start: the folder holds another training, is damaged or is in use.

    Example:
        >>> Checkpoint("runs/first", every=1000).every
        1000
    """

    def __init__(self, folder: str | Path, every: int | None = None) -> None:
        if every is not None:
            check_size("every", every)
        self.folder, self.every = folder, every
        self.finished = False
        self.lock = ExitStack()

    def start(self, run: Run) -> None:
        folder = Path(self.folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            is_ours = self.lock.enter_context(hold_lock(folder / ".lock"))
        except OSError as error:
            raise OSError(f"no checkpoint can be written to {folder} ({error})") from error
        if not is_ours:
            raise CheckpointInUseError(
                f"{folder} is in use by another process; wait for it, or choose another folder"
            )
        self.finished = False
        made = run.optim.torch_optimizer
        call = {**run.call, "optimizer": [repr(made), type(made)]}
        self.call = fingerprint(call | {"model": run.model, "guide": run.guide})
        if not (folder / "training.json").exists():
            return
        content, tensors = read(folder, "training")
        check_keys(content, ("call", "finished", "run"), "content")
        self._check_call(content["call"])
        try:
            _restore_run(run, _unpacked(content["run"], tensors))
        except CheckpointError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.folder} does not hold a training: {error!r}") from error
        run.resumed_at, self.finished = run.step, content["finished"] is True
        run.stopped = run.stopped or self.finished

    def after_step(self, run: Run) -> None:
        every = self.every or max(LEAST_EVERY, run.num_steps // 50)
        if run.step % every == 0 and not run.stopped:
            self._write(run, finished=False)

    def end(self, run: Run) -> None:
        if not self.finished:
            self._write(run, finished=not run.interrupted)

    def close(self) -> None:
        self.lock.close()

    def _write(self, run: Run, finished: bool) -> None:
        tensors: dict[str, torch.Tensor] = {}
        state = _packed(_state_of_run(run), tensors, "training")
        content = {"call": self.call, "finished": finished, "run": state}
        try:
            write(self.folder, content, tensors, "training")
        except OSError as error:
            said = "the one before it, if any, is whole: mend the disk, and the same call resumes"
            message = f"the checkpoint in {self.folder} could not be written ({error}); {said}"
            raise OSError(message) from error

    def _check_call(self, call: Any) -> None:
        check_keys(call, tuple(self.call), "call")
        others = [name for name, value in self.call.items() if call[name] != value]
        if "num_steps" in others:  # then there are as many values of the schedules
            others = [name for name in others if name not in ("learning_rate", "schedule")]
        if others:
            raise CheckpointError(
                f"{self.folder} is of another training: not the same {', '.join(others)}. Make the "
                "call as it was, with programs made anew, choose another folder, or remove this one"
            )


def _state_of_run(run: Run) -> dict[str, Any]:
    """All that the steps of a training change: plain values and tensors, nested."""
    known = {id(constraint): name for name, constraint in CONSTRAINTS.items()}
    of_store = pyro.get_param_store().get_state()["constraints"]
    device = next(iter(run.optim.parameters.values())).device
    records = [[record[name] for name in RECORD] for record in run.records]
    return {
        "records": torch.tensor(records, dtype=torch.float64),
        "programs": state_of(run.model, run.guide),
        "buffers": _other_buffers(run),
        "constraints": {name: known.get(id(value)) for name, value in of_store.items()},
        "names": list(run.optim.parameters),
        "optimizer": run.optim.torch_optimizer.state_dict(),
        "callbacks": [callback.state_dict() for callback in _stateful(run)],
        "random": get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _stateful(run: Run) -> list[Callback]:
    """The callbacks that keep something: a bar or a log may come and go between two calls."""
    return [c for c in run.callbacks if type(c).state_dict is not Callback.state_dict]


def _restore_run(run: Run, state: Mapping[str, Any]) -> None:
    """Puts what `_state_of_run` gave into a run that is as it was before its first step."""
    _make_late(run, state)
    restore(run.model, run.guide, state["programs"])
    for buffer, value in zip(_other_buffers(run), state["buffers"], strict=True):
        buffer.copy_(value)
    if (names := list(run.optim.parameters)) != state["names"]:
        raise CheckpointError(f"the optimizer has {names[:5]}, not {state['names'][:5]}")
    run.optim.torch_optimizer.load_state_dict(state["optimizer"])
    for callback, values in zip(_stateful(run), state["callbacks"], strict=True):
        callback.load_state_dict(values)
    for row in state["records"].tolist():
        run.records.append(dict(zip(RECORD, row, strict=True)) | {"step": int(row[0])})
    set_rng_state(state["random"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _make_late(run: Run, state: Mapping[str, Any]) -> None:
    """Makes each ``pyro.param`` that only a later step of the killed run had reached."""
    store = pyro.get_param_store()
    for name, constraint in state["constraints"].items():
        if name in store or f"param.{name}" not in state["programs"]:
            continue
        if constraint not in CONSTRAINTS:
            raise CheckpointError(
                f"parameter {name!r} came up in a later step, with a constraint that has no name: "
                "it cannot be made anew; reach it in the first step"
            )
        value = state["programs"][f"param.{name}"].clone().requires_grad_()
        store.set_state({"params": {name: value}, "constraints": {name: CONSTRAINTS[constraint]}})
    run.optim.add_late(dict(store.named_parameters()))


def _other_buffers(run: Run) -> list[torch.Tensor]:
    """Of the modules that plain functions call: their parameters are in Pyro's store."""
    ours = {id(p) for module in modules(run.model, run.guide) for p in module.modules()}
    others = [part for part in run.called if id(part) not in ours]
    return [buffer for part in others for buffer in part.buffers(recurse=False)]


def _packed(value: Any, tensors: dict[str, torch.Tensor], where: str) -> Any:
    """Nested values as JSON has them, their tensors put by number into `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[str(len(tensors))] = value.detach().clone()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, np.ndarray) and value.dtype == np.uint32:  # of NumPy's generator
        return {"uint32": _packed(torch.from_numpy(value.astype(np.int64)), tensors, where)}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {"items": [[k, _packed(v, tensors, f"{where}.{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        parts = [_packed(item, tensors, where) for item in value]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if not is_plain(value):
        raise ValueError(
            f"{where} is {value!r:.60}, which no checkpoint can hold; use an optimizer and "
            "callbacks that keep tensors, numbers and texts"
        )
    return value


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "items":
        return {key: _unpacked(item, tensors) for key, item in inner}
    if kind == "tensor":
        return tensors[inner].clone()
    inner = _unpacked(inner, tensors)
    if kind == "uint32":
        return inner.numpy().astype(np.uint32)
    return {"tuple": tuple, "float": float}[kind](inner)

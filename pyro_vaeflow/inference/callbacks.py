"""What `train` calls after each step: held-out choice, Ctrl-C, the progress bar.

A callback of one's own is a function of the step's record, or a `Callback`:

    >>> class StopAtLoss(Callback):
    ...     def __init__(self, loss):
    ...         self.loss = loss
    ...     def after_step(self, run):
    ...         if run.records[-1]["loss"] < self.loss:
    ...             run.stop()
    >>> import torch
    >>> from pyro_vaeflow import Guide, Model, train
    >>> history = train(Model(3), Guide(3), torch.rand(9, 3), num_steps=100, progress=False,
    ...                 callbacks=[StopAtLoss(1e6)])
    >>> len(history.frame)
    1
"""

import math
import signal
import threading
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pandas as pd
import pyro
import torch
from tqdm.auto import tqdm

from pyro_vaeflow.inference.parameters import Program, modules
from pyro_vaeflow.inference.scoring import score
from pyro_vaeflow.inference.svi import OneOptimizer

# What `train` notes of each step.
RECORD = (
    "step loss elbo log_likelihood kl anneal learning_rate grad_norm seconds held_out_elbo".split()
)
Record = dict[str, float]
AT_ONCE = 500  # held-out rows


class InterruptedWarning(UserWarning):
    """Ctrl-C ended a training early; its programs are usable as they are."""


@dataclass
class Run:
    """A training as its callbacks see it.

    Attributes:
        model, guide: the programs, whose parameters the steps change.
        optim: their optimizer.
        num_steps: that were asked for.
        call: the arguments of `train` that decide its numbers, by name.
        called: the modules that the programs call.
        callbacks: those of this training.
        records: one a step so far; see `History.frame`.
        best_step: the step whose parameters the programs will have in the end, if one was chosen.
        resumed_at: the step that this process began with.
        stopped, interrupted: whether there is no further step, and whether that was Ctrl-C.
    """

    model: Program
    guide: Program
    optim: OneOptimizer
    num_steps: int
    call: Mapping[str, Any]
    called: list[torch.nn.Module]
    callbacks: "list[Callback]"
    records: list[Record] = field(default_factory=list)
    best_step: int | None = None
    resumed_at: int = 0
    stopped: bool = False
    interrupted: bool = False

    @property
    def step(self) -> int:
        """The number of steps that were taken."""
        return len(self.records)

    def stop(self) -> None:
        """Ends the training after the step at hand."""
        self.stopped = True


@dataclass(frozen=True)
class History:
    """What `train` saw.

    Attributes:
        frame: one row a step: ``loss`` (annealed, nats per row), ``elbo`` (the true bound, nats
            per row; it leaves out the KL of a latent that all rows share) and its parts
            ``log_likelihood`` and ``kl``, ``anneal`` (beta or capacity),
            ``learning_rate``, ``grad_norm`` (before clipping), ``seconds`` since the start, and
            ``held_out_elbo`` where it was evaluated, else NaN.
        best_step: the step whose parameters the programs hold, if held-out rows chose it.
        resumed_at: the step that this call began with: above 0 if it resumed from a checkpoint.
        interrupted: whether Ctrl-C was pressed.
    """

    frame: pd.DataFrame
    best_step: int | None = None
    resumed_at: int = 0
    interrupted: bool = False

    def __repr__(self) -> str:
        elbo = self.frame["elbo"].tail(20).mean()
        return f"History of {len(self.frame)} steps: ELBO {elbo:.3f} nats per row in the last"

    def plot(self) -> Any:
        """A matplotlib ``Figure``: the curves of loss, ELBO, its parts, beta and gradient norm."""
        from pyro_vaeflow.plots.charts import plot_history

        return plot_history(self.frame)


class Callback:
    """What `train` calls; a callback overrides what it needs, and inherits its docstring.

    Callbacks are called in their order, at the end in the opposite one. What they raise ends
    training. They should draw no random numbers from torch's global stream: training does.
    """

    def start(self, run: Run) -> None:
        """Called once before the first step."""

    def after_step(self, run: Run) -> None:
        """Called after each step; ``run.records[-1]`` is its record, and may be added to."""

    def end(self, run: Run) -> None:
        """Called once after the last step."""

    def close(self) -> None:
        """Called when training is over, even by an error: files and handlers are given back."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback: plain values and tensors, nested or not."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


class OfRecords(Callback):
    """A function that is called with the record of each step."""

    def __init__(self, function: Callable[[Record], object]) -> None:
        self.function = function

    def after_step(self, run: Run) -> None:
        self.function(run.records[-1])


class BestOnHeldOut(Callback):
    """Leaves the programs with the parameters and buffers of the best ELBO of held-out rows.

    Args:
        rows: tensor ``(num_data, ...)``, or a tuple of arguments that starts with it.
        every: steps from one evaluation to the next; the last step has one too.
        patience: evaluations without a better one after which training stops; None: it does not.
        plate: the name of the plate of rows.
    """

    def __init__(
        self, rows: Any, every: int = 100, patience: int | None = None, plate: str = "data"
    ) -> None:
        self.rows, self.every, self.patience, self.plate = rows, every, patience, plate
        self.best, self.step, self.evaluations_since = -math.inf, -1, 0
        self.states: list[dict[str, torch.Tensor]] = []  # of the modules, then of Pyro's store

    def after_step(self, run: Run) -> None:
        if run.step % self.every and run.step != run.num_steps:
            return
        # The same noise at each evaluation: the rows' own. That all of a few thousand draws fit
        # into memory is not asked anew at each.
        options: dict[str, Any] = {"plate": self.plate, "chunk_size": AT_ONCE}
        scores = score(run.model, run.guide, self.rows, num_samples=8, **options)
        run.records[-1]["held_out_elbo"] = elbo = scores.elbo.mean().item()
        self.evaluations_since += 1
        if elbo > self.best:
            self.best, self.step, self.evaluations_since = elbo, run.step - 1, 0
            self.states = deepcopy([m.state_dict() for m in modules(run.model, run.guide)])
            stored = pyro.get_param_store().named_parameters()
            self.states.append({name: p.detach().clone() for name, p in stored})
        if self.patience is not None and self.evaluations_since >= self.patience:
            run.stop()

    def end(self, run: Run) -> None:
        if self.step < 0:
            return
        run.best_step = self.step
        *of_modules, of_store = self.states
        for module, state in zip(modules(run.model, run.guide), of_modules, strict=True):
            module.load_state_dict(state)
        stored = dict(pyro.get_param_store().named_parameters())
        with torch.no_grad():
            for name, value in of_store.items():
                stored[name].copy_(value)

    _STATE = ("best", "step", "evaluations_since", "states")

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update({name: state[name] for name in self._STATE})


class CtrlC(Callback):
    """Deferred Ctrl-C: training stops after the step at hand; a second one acts at once.

    Only Python's own handler is put aside, and put back at the end: where another one is set, or
    in a thread beside the main one, which no signal reaches, nothing changes.
    """

    def __init__(self) -> None:
        self.pressed = self.listens = False

    def start(self, run: Run) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.listens = True
            signal.signal(signal.SIGINT, self._press)

    def after_step(self, run: Run) -> None:
        if self.pressed and not run.stopped:
            run.interrupted = True
            run.stop()

    def close(self) -> None:
        if self.listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


class ProgressBar(Callback):
    """A bar with the latest loss and ELBO, nats per row."""

    def start(self, run: Run) -> None:
        self.bar = tqdm(desc="train", total=run.num_steps, initial=run.step, unit="step")

    def after_step(self, run: Run) -> None:
        record = run.records[-1]
        if run.step % 20 == 1:
            shown = {name: f"{record[name]:.3f}" for name in ("loss", "elbo")}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()

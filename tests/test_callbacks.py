"""Callbacks: their order, what they may do to a training, and that a program runs at every step."""

import math
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from pyro_vaeflow import Callback, Checkpoint, CheckpointError, Guide, TensorBoard
from pyro_vaeflow.inference.callbacks import TAGS
from tests.programs import ZOO, Pair, rows


class Noted(Callback):
    """Writes down each call under its name."""

    def __init__(self, name: str, calls: list[str], fails_in: str = "") -> None:
        self.name, self.calls, self.fails_in = name, calls, fails_in

    def _note(self, call: str) -> None:
        self.calls.append(f"{self.name} {call}")
        if call == self.fails_in:
            raise RuntimeError(f"{self.name} fails")

    def start(self, run) -> None:
        self._note("start")

    def after_step(self, run) -> None:
        self._note("step")

    def end(self, run) -> None:
        self._note("end")

    def close(self) -> None:
        self._note("close")


def test_callbacks_are_called_in_order_and_at_the_end_in_reverse() -> None:
    calls: list[str] = []
    ZOO["diagonal"]().fit(num_steps=2, callbacks=[Noted("a", calls), Noted("b", calls)])
    steps = ["a step", "b step"]
    ends = ["b end", "a end", "b close", "a close"]
    assert calls == ["a start", "b start", *steps, *steps, *ends]


@pytest.mark.parametrize("call", ["start", "step", "end"])
def test_what_a_callback_raises_ends_training_and_all_are_closed(call: str) -> None:
    calls: list[str] = []
    callbacks = [Noted("a", calls), Noted("b", calls, fails_in=call), Noted("c", calls)]
    with pytest.raises(RuntimeError, match="b fails"):
        ZOO["diagonal"]().fit(num_steps=2, callbacks=callbacks)
    assert calls[-2:] == ["b close", "a close"]
    assert ("c close" in calls) == ("c start" in calls)


def test_a_function_is_called_with_the_record_of_each_step_and_changes_nothing() -> None:
    records: list[dict] = []
    torch.manual_seed(0)
    plain = ZOO["diagonal"]().fit(num_steps=3).frame
    torch.manual_seed(0)
    frame = ZOO["diagonal"]().fit(num_steps=3, callbacks=[records.append, lambda _: None]).frame
    assert pd.DataFrame(records)[[*frame]].equals(frame)
    assert plain.drop(columns="seconds").equals(frame.drop(columns="seconds"))


def test_a_callback_sees_the_held_out_elbo_of_its_step_and_may_stop_the_training() -> None:
    class Plateau(Callback):
        """Stops once an evaluation is no better than the one before."""

        def __init__(self) -> None:
            self.last = -math.inf

        def after_step(self, run) -> None:
            elbo = run.records[-1]["held_out_elbo"]
            if elbo <= self.last:
                run.stop()
            self.last = elbo if math.isfinite(elbo) else self.last

    options = {"held_out": rows(20), "eval_every": 5, "learning_rate": 0.0}
    history = ZOO["two_latents"]().fit(callbacks=[Plateau()], **options)
    assert len(history.frame) == 10 and history.best_step == 4 and not history.interrupted


class Counted(Guide):
    """The guide that ships, edited: it counts its runs."""

    runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return super().forward(x)


def test_programs_run_at_every_step_and_changes_to_them_take_effect() -> None:
    """The schedule makes the decoder say 7 of every entry, then a callback 70, for good."""
    model, guide = ZOO["diagonal"]().model, Counted(3, 2, (8,), flow="iaf", num_flows=1)
    runs, bases, says = [], [], model.likelihood.loc

    def say(value: float) -> None:
        says.requires_grad_(False)
        says.weight.data.zero_()
        says.bias.data.fill_(value)

    def schedule(step: int) -> float:
        if step == 40:
            say(7.0)
        return 1.0

    def note(record: dict) -> None:
        runs.append(guide.runs)
        bases.append(guide.base.weight.detach().clone())
        if record["step"] == 79:
            say(70.0)

    history = Pair(model, guide, rows()).fit(num_steps=120, callbacks=[note], schedule=schedule)
    loss = history.frame["loss"]
    assert loss[40] > max(loss[:40]) + 20.0 and loss[80] > max(loss[:80]) + 20.0
    assert (says.bias == 70.0).all() and not says.weight.any()
    assert not torch.equal(bases[80], bases[119])  # all else learns on
    assert runs == list(range(runs[0], runs[0] + 120))
    assert runs[0] <= 5  # the checks before the first step, and that


class Averaged(Callback):
    """Draws a weight towards its moving average; its state is of each kind that may be saved."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.best, self.average = pair, -math.inf, torch.zeros(())
        self.by_step: dict[int, tuple[float, str]] = {}

    def after_step(self, run) -> None:
        record, weight = run.records[-1], self.pair.guide.base.weight.detach()
        self.best = max(self.best, record["elbo"])
        self.average = 0.9 * self.average + 0.1 * weight
        self.by_step[record["step"]] = record["elbo"], "text"
        if self.best == record["elbo"]:  # what is forgotten changes the training
            self.pair.guide.base.weight.data.lerp_(self.average, 0.5)

    def state_dict(self) -> dict:
        return {"best": self.best, "average": self.average, "all": [self.by_step, None, True]}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.average, (self.by_step, *_) = (state[k] for k in ("best", "average", "all"))


def test_a_callbacks_state_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    def fit(stops_after: int, **options) -> Averaged:
        torch.manual_seed(0)
        pair = ZOO["diagonal"]()
        averaged = Averaged(pair)

        def stop(record: dict) -> None:
            if record["step"] == stops_after:
                raise Stopped

        stateless = [stop] if stops_after >= 0 else []  # such may be left out later
        pair.fit(num_steps=20, callbacks=[*stateless, averaged], **options)
        return averaged

    straight, options = fit(-1), {"checkpoint": Checkpoint(tmp_path, every=4)}
    for stops_after in (13, 17):
        with pytest.raises(Stopped):
            fit(stops_after, **options)
    again = fit(-1, **options)
    assert straight.by_step == again.by_step and straight.best == again.best
    assert torch.equal(straight.average, again.average)
    assert torch.equal(straight.pair.guide.base.weight, again.pair.guide.base.weight)
    with pytest.raises(CheckpointError, match="does not hold a training"):
        ZOO["diagonal"]().fit(num_steps=20, **options)  # without the callbacks


class Stopped(Exception):
    """Stands in for the end of the process."""


def test_event_files_hold_the_history(tmp_path: Path) -> None:
    reason = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(reason, reason="no TensorBoard")
    options = {"held_out": rows(5), "eval_every": 3}
    frame = (
        ZOO["diagonal"]().fit(num_steps=7, callbacks=[TensorBoard(tmp_path, 2)], **options).frame
    )
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(TAGS.values())
    for column, steps in {"elbo": [0, 2, 4, 5, 6], "held_out_elbo": [2, 5, 6]}.items():
        scalars = events.Scalars(TAGS[column])  # step 5 is there for its held-out rows
        assert [scalar.step for scalar in scalars] == steps
        assert [scalar.value for scalar in scalars] == pytest.approx(frame[column][steps].tolist())


def test_without_tensorboard_it_says_how_to_get_it(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install \"pyro_vaeflow\[tensorboard\]\""):
        TensorBoard(tmp_path)

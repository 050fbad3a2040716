"""Callbacks: their order, what they may do to a training, and that a program runs at every step."""

import math

import pytest
import torch

from pyro_vaeflow import Callback, Guide, TensorBoard, linear
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


def test_a_function_is_called_with_the_record_of_each_step() -> None:
    records: list[dict] = []
    history = ZOO["diagonal"]().fit(num_steps=3, callbacks=[records.append])
    assert records == history.frame.replace({math.nan: None}).to_dict("records") or all(
        record["loss"] == loss for record, loss in zip(records, history.frame["loss"], strict=True)
    )
    assert [record["step"] for record in records] == [0, 1, 2]


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


@pytest.mark.parametrize(("flow", "num_flows"), [("diagonal", 0), ("planar", 3), ("iaf", 3)])
def test_a_program_runs_at_every_step_of_a_long_training(flow: str, num_flows: int) -> None:
    guide = Counted(3, 2, (8,), flow=flow, num_flows=num_flows)
    pair, at_step = Pair(ZOO["diagonal"]().model, guide, rows()), []
    pair.fit(num_steps=600, callbacks=[lambda record: at_step.append(guide.runs)])
    assert at_step == list(range(at_step[0], at_step[0] + 600))
    assert at_step[0] <= 5  # the checks before the first step, and that


@pytest.mark.parametrize("by", ["callback", "schedule"])
def test_what_is_changed_in_a_module_during_a_training_takes_effect(by: str) -> None:
    """Whoever freezes the decoder, or makes it another, at the 300th step of 600."""
    pair = ZOO["diagonal"]()
    model = pair.model
    weights: list[torch.Tensor] = []

    def at(step: int) -> float:
        if step == 300:
            model.likelihood.loc.requires_grad_(False)
            model.likelihood.loc.weight.data.zero_()
            model.likelihood.loc.bias.data.fill_(7.0)
        return 1.0

    def note(record) -> None:
        weights.append(model.decoder[0].weight.detach().clone())
        if by == "callback":
            at(record["step"] + 1)

    schedule = at if by == "schedule" else linear(1, 1.0)
    history = pair.fit(num_steps=600, callbacks=[note], schedule=schedule)
    loss = history.frame["loss"]
    assert loss[:300].max() < 20.0 < loss[300:].min()  # every entry is 7 now, whatever z is
    assert (model.likelihood.loc.bias == 7.0).all()
    moved = [not torch.equal(*two) for two in zip(weights, weights[1:], strict=False)]
    assert all(moved[:299]) and weights[450].equal(weights[450])


def test_tensorboard_has_the_history_and_a_second_training_purges(tmp_path) -> None:
    pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

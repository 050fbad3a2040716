"""Training steps of the public `train` and of hand-written loops, in turn."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from pyro_vaeflow.inference.replay import CHECKED

from benchmarks.cases import cases, programs, rows
from benchmarks.handwritten import FUSED, LAYERWISE, Network, loop
from benchmarks.record import Line
from pyro_vaeflow import train
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.inference.parameters import module_mode, seeded
from pyro_vaeflow.programs.fitting import annealing

FIRST = 1 + CHECKED  # steps of `train` that are recorded and checked: not like the later ones


@dataclass(frozen=True)
class Steps:
    """The ways to take the same steps of one configuration.

    Each method returns the loss of each step, nats a row, and the processor's seconds of each
    step but the first. All start from the same parameters and see the same noise.
    """

    config: ExperimentConfig
    x: torch.Tensor
    num_steps: int

    def ours(self, replay: bool = True) -> tuple[list[float], list[float]]:
        starts: dict[int, float] = {}

        def rate(step: int) -> float:  # asked at the start of each step: it sees the clock
            if step not in starts:
                starts[step] = time.process_time()
            return self.config.learning_rate

        model, guide = programs(self.config)
        history = train(
            model,
            guide,
            self.x,
            num_steps=FIRST + self.num_steps,
            batch_size=self.config.batch_size,
            learning_rate=rate,
            schedule=self._beta,
            progress=False,
            replay=replay,
        )
        losses = history.frame["loss"].tolist()[: self.num_steps]
        return losses, _between(list(starts.values())[FIRST:])

    def fused(self) -> tuple[list[float], list[float]]:
        return self._by_hand(FUSED)

    def layerwise(self) -> tuple[list[float], list[float]]:
        return self._by_hand(LAYERWISE)

    def _by_hand(
        self, ways: dict[type, Callable[..., torch.nn.Module]]
    ) -> tuple[list[float], list[float]]:
        network = Network(*programs(self.config), ways)
        with module_mode(network, training=True), seeded(0):
            losses, ends = loop(
                network,
                self.x,
                num_steps=self.num_steps,
                batch_size=self.config.batch_size,
                learning_rate=self.config.learning_rate,
                beta=self._beta,
            )
        return losses, _between(ends)

    @property
    def _beta(self) -> Callable[[int], float]:
        return annealing(self.config.annealing, 100)[0]


def measure(num_steps: int, num_rounds: int) -> Iterator[Line]:
    """`train` against the hand-written loop and against the layer-by-layer one, case by case."""
    for name, config in cases().items():
        steps = Steps(config, rows(10_000), num_steps)
        ways: dict[str, Callable[[], tuple[list[float], list[float]]]] = {
            "ours": steps.ours,
            "unreplayed": partial(steps.ours, replay=False),
            "fused": steps.fused,
            "layerwise": steps.layerwise,
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(num_rounds):
            turn = list(ways) if number % 2 == 0 else list(reversed(ways))
            for way in turn:
                seconds[way] += ways[way]()[1]
        ms = {way: 1e3 * median(values) for way, values in seconds.items()}
        yield Line("train_step", name, ms["ours"], ms["fused"], "ms")
        yield Line("train_step_unreplayed", name, ms["unreplayed"], ms["fused"], "ms")
        yield Line("train_step_vs_layerwise", name, ms["ours"], ms["layerwise"], "ms")


def _between(times: list[float]) -> list[float]:
    return [after - before for before, after in zip(times[:-1], times[1:], strict=True)]

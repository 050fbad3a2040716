"""Scoring beside what its matrix products alone would take at this machine's measured rate."""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from pyro_vaeflow.programs.iaf import ConditionalIAFStack

from benchmarks.cases import NUM_FEATURES, cases, programs, rows
from benchmarks.record import Line
from pyro_vaeflow import KhatWarning, score, train
from pyro_vaeflow.programs.vae import Guide, Model

NUM_ROWS, NUM_DRAWS = 98_805, 100  # the paper's test rows, and its draws
AT_ONCE = 1_000  # draws of one product: the fastest of 500 to 20,000


def clock() -> Callable[[], float]:
    """The processor's time for one thread, whom neighbours then disturb less; else the wall's."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


@dataclass(frozen=True)
class Products:
    """The matrix products of `AT_ONCE` draws alone: the decoder's and those of an IAF."""

    weights: list[torch.Tensor]

    @classmethod
    def of(cls, model: Model, guide: Guide) -> "Products":
        layers = [*model.decoder, model.likelihood.logits]
        weights = [layer.weight.detach() for layer in layers if hasattr(layer, "weight")]
        for stack in guide.flow:
            if isinstance(stack, ConditionalIAFStack):
                pairs = zip(stack.weight_in.detach(), stack.weight_out.detach(), strict=True)
                weights += [weight for pair in pairs for weight in pair]
        return cls(weights)

    @property
    def flop(self) -> int:
        return sum(2 * AT_ONCE * weight.numel() for weight in self.weights)

    def seconds(self, times: int) -> list[float]:
        """What all of them take together, `times` times."""
        inputs = [torch.randn(AT_ONCE, weight.shape[1]) for weight in self.weights]
        now, found = clock(), []
        for _ in range(times):
            start = now()
            for x, weight in zip(inputs, self.weights, strict=True):
                F.linear(x, weight)
            found.append(now() - start)
        return found


WIDEST = Products([torch.ones(NUM_FEATURES, 128)])


def measure(num_rows: int, num_rounds: int) -> Iterator[Line]:
    """Seconds for `NUM_ROWS` distinct rows, from `num_rows` of them; the products in turn.

    The reference is what the products take, or would take at the rate of the widest of them.
    """
    x, now = rows(num_rows), clock()
    chunks = NUM_ROWS * NUM_DRAWS / AT_ONCE
    for name in ("diagonal", "planar 5", "IAF 5"):
        model, guide = programs(cases()[name])
        train(model, guide, x, num_steps=1, progress=False)
        products = Products.of(model, guide)
        ours, bare, widest = [], [], []
        for _ in range(num_rounds):
            start = now()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", KhatWarning)
                score(model, guide, x, num_samples=NUM_DRAWS)
            ours.append((now() - start) * NUM_ROWS / num_rows)
            bare += products.seconds(200)
            widest += WIDEST.seconds(200)
        unit = "s for 98,805 rows x 100 draws"
        yield Line("score", name, median(ours), chunks * median(bare), unit)
        at_rate = chunks * products.flop / WIDEST.flop * median(widest)
        yield Line("score_vs_gemm_rate", name, median(ours), at_rate, unit)


def gemm_rate(num_rounds: int) -> Iterator[Line]:
    """The rate of the widest product."""
    rate = 1e-9 * WIDEST.flop / median(WIDEST.seconds(num_rounds * 40))
    yield Line("gemm", f"{AT_ONCE} x 128 x {NUM_FEATURES}", rate, None, "GFLOP/s")

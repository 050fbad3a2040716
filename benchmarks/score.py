"""Scoring beside what its matrix products alone would take at this machine's measured rate."""

import time
import warnings
from collections.abc import Callable, Iterator
from statistics import median

import torch
import torch.nn.functional as F

from benchmarks.cases import NUM_FEATURES, cases, programs, rows
from benchmarks.record import Line
from pyro_vaeflow import KhatWarning, score, train
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.programs.iaf import ConditionalIAFStack
from pyro_vaeflow.programs.vae import Guide, Model

NUM_ROWS, NUM_DRAWS = 98_805, 100  # the paper's test rows, and its draws
AT_ONCE = 1_000  # draws of one product: the fastest of 500 to 20,000


def clock() -> Callable[[], float]:
    """The processor's time for one thread, whom neighbours then disturb less; else the wall's."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def floor(config: ExperimentConfig, model: Model, guide: Guide) -> Callable[[], None]:
    """The matrix products of `AT_ONCE` draws: the decoder's and those of an IAF."""
    layers = [part for part in [*model.decoder, model.likelihood.logits] if hasattr(part, "weight")]
    weights = [layer.weight.detach() for layer in layers]
    for stack in guide.flow:
        if isinstance(stack, ConditionalIAFStack):
            pairs = zip(stack.weight_in.detach(), stack.weight_out.detach(), strict=True)
            weights += [weight for pair in pairs for weight in pair]
    inputs = [torch.randn(AT_ONCE, weight.shape[1]) for weight in weights]

    def products() -> None:
        for x, weight in zip(inputs, weights, strict=True):
            F.linear(x, weight)

    return products


def measure(num_rows: int, num_rounds: int) -> Iterator[Line]:
    """Seconds for `NUM_ROWS` distinct rows, from `num_rows` of them; the products in turn."""
    x, now = rows(num_rows), clock()
    for name in ("base VAE", "planar 5", "IAF 5"):
        config = cases()[name]
        model, guide = programs(config)
        train(model, guide, x, num_steps=1, progress=False)
        products = floor(config, model, guide)
        ours, bare = [], []
        for _ in range(num_rounds):
            start = now()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", KhatWarning)
                score(model, guide, x, num_samples=NUM_DRAWS)
            ours.append((now() - start) * NUM_ROWS / num_rows)
            for _ in range(200):
                start = now()
                products()
                bare.append((now() - start) * NUM_ROWS * NUM_DRAWS / AT_ONCE)
        yield Line("score", name, median(ours), median(bare), "s for 98,805 rows x 100 draws")


def gemm_rate(num_rounds: int) -> Iterator[Line]:
    """The rate of the widest product."""
    x, weight, now = torch.randn(AT_ONCE, 128), torch.randn(NUM_FEATURES, 128), clock()
    seconds = []
    for _ in range(num_rounds * 40):
        start = now()
        F.linear(x, weight)
        seconds.append(now() - start)
    rate = 2e-9 * AT_ONCE * 128 * NUM_FEATURES / median(seconds)
    yield Line("gemm", f"{AT_ONCE} x 128 x {NUM_FEATURES}", rate, None, "GFLOP/s")

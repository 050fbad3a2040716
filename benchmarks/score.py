"""Scoring beside what its matrix products alone would take at this machine's measured rate."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from statistics import median

import torch
import torch.nn.functional as F

from benchmarks.cases import NUM_FEATURES, cases, programs, rows, sizes
from benchmarks.record import Line
from pyro_vaeflow import KhatWarning, score, train
from pyro_vaeflow.experiments.config import ExperimentConfig

NUM_ROWS, NUM_DRAWS = 98_805, 100  # the paper's test rows, and its draws
DRAWS_AT_ONCE = 1_000  # of one product: the fastest of 500 to 20,000

Shape = tuple[int, int]
WIDEST: Shape = (NUM_FEATURES, 128)


def clock() -> Callable[[], float]:
    """The processor's time for one thread, whom neighbours then disturb less; else the wall's."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def products(config: ExperimentConfig) -> list[Shape]:
    """The weights that a draw of z is multiplied with: the decoder's and those of an IAF."""
    size = sizes(config)
    widths = [size["latent_dim"], *size["decoder_dims"], NUM_FEATURES]
    shapes = [(after, before) for before, after in pairwise(widths)]
    if size["flow"] == "iaf":
        latent, hidden = size["latent_dim"], size["made_dim"]
        shapes += [(hidden, latent), (2 * latent, hidden)] * size["num_flows"]
    return shapes


def flop(shapes: Sequence[Shape]) -> int:
    """Operations of `DRAWS_AT_ONCE` draws."""
    return sum(2 * DRAWS_AT_ONCE * after * before for after, before in shapes)


def seconds(shapes: Sequence[Shape], times: int) -> list[float]:
    """What the products of `DRAWS_AT_ONCE` draws take together, `times` times."""
    pairs = [(torch.randn(DRAWS_AT_ONCE, shape[1]), torch.randn(shape)) for shape in shapes]
    now, spent = clock(), []
    for _ in range(times):
        start = now()
        for x, weight in pairs:
            F.linear(x, weight)
        spent.append(now() - start)
    return spent


def measure(num_rows: int, num_rounds: int) -> Iterator[Line]:
    """Seconds for `NUM_ROWS` distinct rows, from `num_rows` of them; the products in turn.

    The reference is what the products take, or would take at the rate of the widest of them.
    """
    x, now = rows(num_rows), clock()
    chunks, rates = NUM_ROWS * NUM_DRAWS / DRAWS_AT_ONCE, []
    for name in ("diagonal", "planar 5", "iaf 5"):
        model, guide = programs(cases()[name])
        train(model, guide, x, num_steps=1, progress=False)
        shapes = products(cases()[name])
        ours, bare, widest = [], [], []
        for _ in range(num_rounds):
            start = now()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", KhatWarning)
                score(model, guide, x, num_samples=NUM_DRAWS)
            ours.append((now() - start) * NUM_ROWS / num_rows)
            bare += seconds(shapes, 200)
            widest += seconds([WIDEST], 200)
        unit = "s for 98,805 rows x 100 draws"
        yield Line("score_vs_products", name, median(ours), chunks * median(bare), unit)
        rates.append(flop([WIDEST]) / median(widest))
        at_rate = chunks * flop(shapes) / rates[-1]
        yield Line("score_vs_gemm_rate", name, median(ours), at_rate, unit)
    case = f"{DRAWS_AT_ONCE} x {WIDEST[1]} x {WIDEST[0]}"
    yield Line("gemm", case, 1e-9 * median(rates), None, "GFLOP/s")

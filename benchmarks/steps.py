"""Training steps of the public `train` and of the two references, in turn."""

import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from statistics import median

import torch

from benchmarks import plain_torch, pyro_stock
from benchmarks.cases import BETA, cases, programs, rows, sizes
from benchmarks.record import Line
from pyro_vaeflow import train
from pyro_vaeflow.experiments.config import ExperimentConfig

NUM_WARM = 2  # first steps, which allocate memory and the optimizer's state, are left out

Way = Callable[[ExperimentConfig, torch.Tensor, int], list[float]]


def ours(config: ExperimentConfig, x: torch.Tensor, num_steps: int) -> list[float]:
    """Processor seconds of each step of `train`, read by its learning rate's schedule."""
    starts: dict[int, float] = {}

    def rate(step: int) -> float:
        starts.setdefault(step, time.process_time())
        return config.learning_rate

    train(
        *programs(config),
        x,
        num_steps=num_steps + NUM_WARM + 1,  # the last one only ends the one before
        batch_size=config.batch_size,
        learning_rate=rate,
        schedule=BETA,
        progress=False,
    )
    return _between(list(starts.values()))


def plain(config: ExperimentConfig, x: torch.Tensor, num_steps: int) -> list[float]:
    """Processor seconds of each step of the plain torch loop."""
    network = plain_torch.Network(**sizes(config))
    losses = plain_torch.steps(network, x, config.batch_size, config.learning_rate, BETA)
    return _timed(losses, num_steps)


def stock(config: ExperimentConfig, x: torch.Tensor, num_steps: int) -> list[float]:
    """Processor seconds of each step of Pyro as its tutorials have it."""
    vae = pyro_stock.VAE(**sizes(config))
    losses = pyro_stock.steps(vae, x, config.batch_size, config.learning_rate, BETA)
    return _timed(losses, num_steps)


WAYS: dict[str, Way] = {"ours": ours, "plain": plain, "stock": stock}


def measure(num_steps: int, num_rounds: int) -> Iterator[Line]:
    """`train` beside plain torch and beside stock Pyro, case by case."""
    x = rows(10_000)
    for name, config in cases().items():
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(num_rounds):
            for way in list(WAYS)[:: 1 if number % 2 == 0 else -1]:
                seconds[way] += WAYS[way](config, x, num_steps)
        ms = {way: 1e3 * median(values) for way, values in seconds.items()}
        yield Line("train_step_vs_torch", name, ms["ours"], ms["plain"], "ms")
        yield Line("train_step_vs_pyro", name, ms["ours"], ms["stock"], "ms")


def _timed(losses: Iterator[float], num_steps: int) -> list[float]:
    times = [time.process_time()]
    times += [time.process_time() for _ in islice(losses, num_steps + NUM_WARM)]
    return _between(times)


def _between(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)][NUM_WARM:]

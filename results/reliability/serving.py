"""Requests a second that one detector serves from threads and from processes, and their scores.

``python -m results.reliability.serving --write results/reliability/serving.csv`` sends requests of
one row and of a hundred rows for some seconds each way; every answer must be the one of a single
thread, bit for bit. Ways are taken in turn, and the median of the rounds is written.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from pyro_vaeflow import VAEFlowDetector

DRAW = np.random.default_rng(0)
FRAME = pd.DataFrame(DRAW.normal(size=(400, 8)), columns=list("abcdefgh")).assign(
    kind=DRAW.choice(["a", "b", "c"], 400)
)
SIZES = (1, 100)  # rows a request


@cache  # a process loads its detector once
def detector(folder: Path) -> VAEFlowDetector:
    """The model that a service has loaded."""
    return VAEFlowDetector.load(folder)


def request(folder: Path, size: int, number: int) -> tuple[int, np.ndarray]:
    """The scores of some rows, and which rows they were."""
    start = number * size % (len(FRAME) - size)
    return start, detector(folder).score_samples(FRAME.iloc[start : start + size])


def served(executor: Executor, workers: int, folder: Path, size: int, seconds: float) -> float:
    """Requests a second that were answered, as one thread answers them."""
    ask = partial(request, folder, size)
    list(executor.map(ask, range(2 * workers)))  # each worker has loaded its detector
    answers: list[tuple[int, np.ndarray]] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        first = len(answers)
        answers += executor.map(ask, range(first, first + 2 * workers))
    rate = len(answers) / (time.perf_counter() - started)
    for start, scores in answers[:20]:
        alone = detector(folder).score_samples(FRAME.iloc[start : start + size])
        if not np.array_equal(scores, alone):
            raise RuntimeError(f"rows from {start} on have other scores than in one thread")
    return rate


def serve(seconds: float, rounds: int, num_steps: int) -> pd.DataFrame:
    """Requests a second, one row a way and size."""
    threads = {f"{n} threads": (partial(ThreadPoolExecutor, n), n) for n in (1, 8)}
    processes = partial(ProcessPoolExecutor, 2, mp_context=get_context("forkserver"))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        VAEFlowDetector(num_steps=num_steps, random_state=0).fit(FRAME).save(folder)
        for round_ in tqdm(range(rounds), desc="rounds"):
            for way, (make, workers) in (threads | {"2 processes": (processes, 2)}).items():
                for size in SIZES:
                    with make() as executor:
                        rate = served(executor, workers, folder, size, seconds)
                    rows.append((way, size, round_, rate))
    table = pd.DataFrame(rows, columns=["way", "rows a request", "round", "requests a second"])
    of_way = table.groupby(["way", "rows a request"], sort=False)["requests a second"]
    return of_way.median().round(2).reset_index()


def main() -> int:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    table = serve(given.seconds, given.rounds, given.steps)
    print(table.to_string(index=False))
    if given.write:
        table.to_csv(given.write, index=False)
    return 0


if __name__ == "__main__":
    from results.reliability import serving as module  # another process imports its functions

    sys.exit(module.main())

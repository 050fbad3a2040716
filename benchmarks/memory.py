"""Peak memory of scoring, each number of rows in a process of its own."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from benchmarks.cases import NUM_FEATURES, cases, programs
from benchmarks.record import Line
from pyro_vaeflow import score, train

MIB = 2**20


def measure(sizes: tuple[int, int], num_samples: int, num_rounds: int) -> Iterator[Line]:
    """Peak MiB of the process above rows and scores, for the larger number of rows and the smaller.

    Medians of `num_rounds` processes: how much of the memory that is kept for the next chunk was
    there at the start differs from one to the next.
    """
    small, large = (median(_of_process(n, num_samples) for _ in range(num_rounds)) for n in sizes)
    case = f"{sizes[1]:,} rows beside {sizes[0]:,}, {num_samples} draws"
    yield Line("memory", case, large, small, "MiB of the process above the rows and their scores")


def _of_process(num_rows: int, num_samples: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", str(num_rows), str(num_samples)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak(num_rows: int, num_samples: int) -> float:
    """Peak MiB of this process above rows and scores, so many of which it makes."""
    # As bytes behind a lazy view they would be no rows: each is its own, made in place.
    x = torch.empty(num_rows, NUM_FEATURES).uniform_()
    model, guide = programs(cases()["diagonal"])
    train(model, guide, x, num_steps=1, progress=False)
    scores = score(model, guide, x, num_samples=num_samples)
    # The status has the largest resident memory; that of getrusage would start at the parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kib / 1024 - sum(tensor.nbytes for tensor in (x, *vars(scores).values())) / MIB


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(peak(*map(int, sys.argv[1:])))

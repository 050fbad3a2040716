"""Peak memory of scoring, each number of rows in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.record import Line

MIB = 2**20


def measure(sizes: tuple[int, int], num_samples: int, num_rounds: int) -> Iterator[Line]:
    """Peak MiB of the process above rows and scores, for the larger number of rows and the smaller.

    `num_samples` draws a row; the rows of a chunk, and so its memory, follow from it. Medians of
    `num_rounds` processes: how much of the memory that is kept for the next chunk was there at the
    start differs from one to the next.
    """
    small, large = (median(_peak(size, num_samples) for _ in range(num_rounds)) for size in sizes)
    case = f"{sizes[1]:,} rows beside {sizes[0]:,}, {num_samples} draws"
    yield Line("memory", case, large, small, "MiB of the process above the rows and their scores")


def _peak(num_rows: int, num_samples: int) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", str(num_rows), str(num_samples)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _resident() -> float:
    """The largest resident memory so far, MiB. That of getrusage would start at the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _main(num_rows: int, num_samples: int) -> None:
    import warnings

    import torch

    from benchmarks.cases import NUM_FEATURES, cases, programs
    from pyro_vaeflow import score, train

    warnings.simplefilter("ignore")
    # As bytes behind a lazy view they would be no rows: each is its own, made in place.
    x = torch.empty(num_rows, NUM_FEATURES).uniform_()
    model, guide = programs(cases()["diagonal"])
    train(model, guide, x, num_steps=1, progress=False)
    scores = score(model, guide, x, num_samples=num_samples)
    data = [x, *(getattr(scores, name) for name in scores.__dataclass_fields__)]
    print(json.dumps(_resident() - sum(tensor.nbytes for tensor in data) / MIB))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))

"""``python -m benchmarks [--quick] [--items train_step score ...] [--out results/benchmarks]``."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import growth, memory, pyod_vae, score, startup, steps
from benchmarks.record import Line, write


def items(quick: bool, out: Path) -> dict[str, Callable[[], Iterable[Line]]]:
    """Name -> what measures it; the small budget shows that it runs, not how fast it is."""
    few, sizes = (1, (200, 400)) if quick else (3, (100_000, 1_000_000))
    return {
        "train_step": lambda: steps.measure(*((2, 1) if quick else (12, 6))),
        "score": lambda: score.measure(*((20, 1) if quick else (10_000, 5))),
        # few draws, since a chunk has as many rows as make its fixed number of draws
        "memory": lambda: memory.measure(sizes, num_samples=5 if quick else 2, num_rounds=few),
        "import": lambda: startup.measure(num_rounds=few),
        "growth": lambda: growth.measure(*((1, 2) if quick else (6, 5)), out),
        "pyod": lambda: pyod_vae.measure(*((1000, 1) if quick else (10_000, 4))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small budget: does it run?")
    parser.add_argument("--items", nargs="+", help="some of train_step score memory ...")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    measures = items(options.quick, options.out)
    chosen = options.items or list(measures)
    if unknown := sorted(set(chosen) - set(measures)):
        parser.error(f"--items must be some of {sorted(measures)}, got {unknown}")
    for name in chosen:
        lines = list(measures[name]())
        for line in lines:
            print(line.to_dict(), flush=True)
        print(write(lines, options.out))


if __name__ == "__main__":
    main()

"""``python -m benchmarks [--quick] [--items train_step score ...] [--out results/benchmarks]``."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import growth, memory, pyod_vae, score, startup, steps
from benchmarks.record import Line, write


def items(quick: bool, out: Path) -> dict[str, Callable[[], Iterable[Line]]]:
    """Name -> what measures it; the small budget shows that it runs, not how fast it is."""
    if quick:
        return {
            "train_step": lambda: steps.measure(num_steps=2, num_rounds=1),
            "score": lambda: score.measure(num_rows=20, num_rounds=1),
            "gemm": lambda: score.gemm_rate(num_rounds=1),
            "memory": lambda: memory.measure((200, 400), num_samples=5, num_rounds=1),
            "import": lambda: startup.measure(num_rounds=1),
            "growth": lambda: growth.measure(num_steps=1, num_sizes=2, out=out),
            "peer": lambda: pyod_vae.measure(num_rows=1000, num_epochs=1),
        }
    return {
        "train_step": lambda: steps.measure(num_steps=12, num_rounds=6),
        "score": lambda: score.measure(num_rows=10_000, num_rounds=5),
        "gemm": lambda: score.gemm_rate(num_rounds=10),
        # 100k and 1M rows; few draws, since a chunk has as many rows as make 30,000 draws
        "memory": lambda: memory.measure((100_000, 1_000_000), num_samples=2, num_rounds=3),
        "import": lambda: startup.measure(num_rounds=3),
        "growth": lambda: growth.measure(num_steps=6, num_sizes=5, out=out),
        "peer": lambda: pyod_vae.measure(num_rows=10_000, num_epochs=4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small budget: does it run?")
    parser.add_argument("--items", nargs="+", help="some of train_step score gemm memory ...")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    args = parser.parse_args()
    measures = items(args.quick, args.out)
    chosen = args.items or list(measures)
    if unknown := sorted(set(chosen) - set(measures)):
        parser.error(f"--items must be some of {sorted(measures)}, got {unknown}")
    for name in chosen:
        lines = list(measures[name]())
        for line in lines:
            print(line.to_dict(), flush=True)
        print(write(lines, args.out))


if __name__ == "__main__":
    main()

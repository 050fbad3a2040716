"""From measured runs to machines for a billion rows a day.

The cost of a row is the processor time of a run less that of the same command when all parts are
there, which is its start and the reading of the input for its sha256.

    python benchmarks/capacity.py results/streaming/runs.csv --out results/streaming/capacity.csv
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

A_DAY, LOAD, CORES = 86_400, 0.7, 16
SETTINGS = ["format", "num_samples", "prior", "explain"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="what benchmarks/streaming.py wrote")
    parser.add_argument("--rows_a_day", type=float, default=1e9)
    parser.add_argument("--out", type=Path, required=True, help="csv")
    options = parser.parse_args()
    runs = pd.read_csv(options.runs)
    keys = ["rows", *SETTINGS]
    means = runs.groupby(["command", *keys])[["cpu_seconds", "peak_mib"]].mean()
    score, again = means.loc["score"], means.loc["score again"]
    seconds = (score["cpu_seconds"] - again["cpu_seconds"]).dropna()
    cost = seconds / seconds.index.get_level_values("rows")
    score = score.loc[cost.index]
    cores = options.rows_a_day * cost / A_DAY / LOAD
    table = pd.DataFrame(
        {
            "microseconds a row": (1e6 * cost).round(1),
            "rows a core-second": (1 / cost).round(-2).astype(int),
            f"cores for {options.rows_a_day:.0e} rows a day at load {LOAD}": cores.round(1),
            f"nodes of {CORES} cores": np.ceil(cores / CORES).astype(int),
            "MiB a process": score["peak_mib"].round().astype(int),
        }
    )
    table.reset_index().to_csv(options.out, index=False)


if __name__ == "__main__":
    main()

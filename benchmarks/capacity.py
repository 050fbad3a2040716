"""From the measured cost of a row to machines for a billion rows a day.

python benchmarks/capacity.py results/streaming/costs.csv --out results/streaming/capacity.csv
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

A_DAY, LOAD, CORES = 86_400, 0.7, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("costs", type=Path, help="what benchmarks/row_cost.py wrote")
    parser.add_argument("--rows_a_day", type=float, default=1e9)
    parser.add_argument("--out", type=Path, required=True, help="csv")
    options = parser.parse_args()
    costs = pd.read_csv(options.costs)
    microseconds = costs.pop("microseconds")
    cores = options.rows_a_day * microseconds / 1e6 / A_DAY / LOAD
    table = costs.drop(columns=["rows", "low", "high"])
    table["microseconds a row"] = microseconds
    table["rows a core-second"] = (1e6 / microseconds).round(-1).astype(int)
    table[f"cores for {options.rows_a_day:.0e} rows a day at load {LOAD}"] = cores.round(1)
    table[f"nodes of {CORES} cores"] = np.ceil(cores / CORES).astype(int)
    table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()

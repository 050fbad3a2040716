"""Many fits and scores in one process: its memory, Pyro's store, open files, hooks and filters.

``python -m results.reliability.soak --write results/reliability/soak.csv`` makes 300 fits and 3,000
scores and writes what the process holds after every fiftieth fit.
"""

import argparse
import gc
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyro
from torch.nn.modules import module as torch_modules
from tqdm import tqdm

from pyro_vaeflow import VAEFlowDetector

SCORES = 10  # after each fit
DRAW = np.random.default_rng(0)
ROWS = pd.DataFrame({"size": DRAW.normal(size=60), "kind": DRAW.choice(["a", "b"], 60)})


def held() -> dict[str, float]:
    """What this process holds now."""
    gc.collect()
    process = psutil.Process()
    return {
        "MiB": round(process.memory_info().rss / 2**20),
        "parameters in the store": len(pyro.get_param_store()),
        "open files": process.num_fds(),
        "threads": process.num_threads(),
        "hooks": len(torch_modules._global_forward_hooks)
        + len(torch_modules._global_forward_pre_hooks),
        "filters of warnings": len(warnings.filters),
    }


def soak(num_fits: int, every: int) -> pd.DataFrame:
    """One row of what is held after each `every` fits, from the first fit on."""
    rows = []
    for fit in tqdm(range(num_fits + 1), desc="fits"):
        detector = VAEFlowDetector(
            num_steps=2, num_samples=2, hidden_dims=(4,), flow="iaf", num_flows=2, random_state=fit
        ).fit(ROWS)
        for _ in range(SCORES):
            detector.score_samples(ROWS.head(2))
        if fit % every == 0:
            rows.append({"fits": fit, "scores": SCORES * fit, **held()})
    return pd.DataFrame(rows)


def main() -> int:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=300)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    table = soak(given.fits, given.every)
    print(table.to_string(index=False))
    if given.write:
        table.to_csv(given.write, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The detector of this version on tables that need no care, beside that of an earlier one.

``python -m results.guard.make --fit NAME`` fits and scores the tables and writes rows.csv, where
rows of NAME are made anew; without it the table is written from rows.csv alone. The exit status is
1 where the last version of rows.csv is worse than the first.
"""

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.datasets.kddcup99 import load_kddcup99
from pyro_vaeflow.datasets.registry import load_adbench, load_breast_cancer_table
from pyro_vaeflow.datasets.splits import Split, holdout_split, one_class_split
from results.shared.pages import markdown, parse, parser, write_page

KDD, SMALL = "kdd", "breast-cancer"  # the latter, of scikit-learn, for the small budget
TABLES = ("annthyroid", "campaign", "cardio", KDD, "satimage-2", "shuttle", "thyroid")
SETTINGS: dict[str, Any] = {"num_steps": 500, "hidden_dims": (32,), "num_samples": 20}
MAX_ROWS, MAX_TEST, SEEDS = 6000, 4000, (0, 1)
QUICK: dict[str, Any] = {"num_steps": 5, "hidden_dims": (8,), "num_samples": 5}
WORSE, SLOWER = 0.1, 1.1  # points of AUROC; times the seconds of a fit, over all tables


def split_of(table: str) -> Split:
    """The split of a table: one of KDD as in the paper, halves of the inliers of the others."""
    if table == SMALL:
        return one_class_split(load_breast_cancer_table())
    if table == KDD:
        return holdout_split(load_kddcup99())
    return one_class_split(load_adbench(table), seed=0)


def rows_of(version: str, table: str, seeds: Sequence[int], **settings: Any) -> pd.DataFrame:
    """A row a seed: AUROC on test rows, and the processor seconds of `fit`."""
    split, rows = split_of(table), []
    draw = np.random.default_rng(0)
    test = draw.permutation(len(split.X_test))[:MAX_TEST]
    train = draw.permutation(len(split.X_train))[:MAX_ROWS]
    for seed in seeds:
        start = time.process_time()
        detector = VAEFlowDetector(**SETTINGS | settings, random_state=seed)
        detector.fit(split.X_train.iloc[train])
        seconds = time.process_time() - start
        score = -detector.score_samples(split.X_test.iloc[test])
        auroc = 100.0 * roc_auc_score(split.y_test[test], score)
        rows.append([version, table, seed, round(auroc, 3), round(seconds, 1)])
    return pd.DataFrame(rows, columns=["version", "table", "seed", "auroc", "seconds"])


def comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a table: means over seeds of the first version and the last, and their differences."""
    first, last = rows["version"].iloc[[0, -1]]
    means = rows.groupby(["version", "table"])[["auroc", "seconds"]].mean()
    before, after = means.loc[first], means.loc[last]
    table = pd.concat({first: before, last: after}, axis=1)
    table.columns = [f"{measure}, {version}" for version, measure in table.columns]
    table["points gained"] = after["auroc"] - before["auroc"]
    table["times the seconds"] = after["seconds"] / before["seconds"]
    return table.dropna().round(3).reset_index()


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, fits what is asked for and writes the table."""
    warnings.simplefilter("ignore", UserWarning)
    command = parser(__file__, __doc__)
    command.add_argument("--fit", metavar="NAME", help="fits detectors, whose rows have this name")
    values = parse(command, argv)
    path: Path = values.folder / "rows.csv"
    if values.quick:
        pd.concat([rows_of(v, SMALL, (0,), **QUICK) for v in ("a", "b")]).to_csv(path, index=False)
    elif values.fit:
        known = pd.read_csv(path) if path.exists() else pd.DataFrame({"version": []})
        known = known[known["version"] != values.fit]
        for table in TABLES:
            known = pd.concat([known, rows_of(values.fit, table, SEEDS)], ignore_index=True)
            known.to_csv(path, index=False)
    table = comparison(pd.read_csv(path))
    write_page(values.folder / "table.md", markdown(table))
    seconds = table.filter(like="seconds, ").sum()
    is_slower = seconds.iloc[-1] > SLOWER * seconds.iloc[0]
    return int(table["points gained"].min() < -WORSE or is_slower)


if __name__ == "__main__":
    sys.exit(main())

"""KDD's figures where memory does not help: inliers that no training row equals, beside anomalies.

Most test inliers equal a training row, to the last column. Of distinct test rows this keeps the
inliers that equal none once encoded, and all anomalies; what scores them is each finished run in
FOLDER and, on the same columns, the number of differing ones to the nearest training row and a
kernel density. Writes unseen.csv and unseen.md.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from pyro_vaeflow.experiments.results import finished_runs, method_name, read_arrays
from pyro_vaeflow.experiments.tables import HEADINGS, mean_std
from pyro_vaeflow.experiments.tasks import Task, load_task
from pyro_vaeflow.metrics import detection_metrics
from results.shared.baselines import MEASURES
from results.shared.detectors import ExactRows
from results.shared.pages import markdown, parse, parser, run_quick, run_script, write_page

BLOCK = 500  # rows whose distances to all training rows are known at once
COUNTS = ["inliers", "of", "anomalies"]
SCORES = {"reconstruction": "expected_log_likelihood", "importance": "log_evidence"}


def controls(train: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Anomaly scores of rows by columns that differ from distinct training rows, ``(num_data,)``.

    The kernel is that of Aitchison and Aitken (1976), with one share of mass on other levels for
    all columns, the one of most leave-one-out likelihood of 2,000 training rows.
    """
    num_columns, shares = train.shape[1], np.geomspace(1e-4, 0.5, 30)
    others = np.log(np.maximum(1.0, train.max(axis=0) + 1.0)).mean()  # levels besides a row's own
    each = np.log(shares) - np.log1p(-shares) - others  # what a column that differs adds
    some = np.random.default_rng(0).permutation(len(train))[:2000]
    near = cdist(train[some], train, "hamming") * num_columns
    near[np.arange(len(some)), some] = np.inf
    likelihood = [logsumexp(near * nats, axis=1).mean() for nats in each]
    chosen = each[np.argmax(likelihood + num_columns * np.log1p(-shares))]
    nearest, density = [], []
    for block in np.array_split(rows, -(-len(rows) // BLOCK)):
        differing = cdist(block, train, "hamming") * num_columns
        nearest.append(differing.min(axis=1))
        density.append(-logsumexp(differing * chosen, axis=1))
    return {
        "differing columns to the nearest": np.concatenate(nearest),
        "kernel density on our columns": np.concatenate(density),
    }


def chosen_rows(task: Task) -> tuple[np.ndarray, int]:
    """Places of the distinct test rows that are kept, and how many distinct inliers there are."""
    is_new = ExactRows().fit(task.x_train.numpy()).decision_function(task.x_test.numpy()) == 1.0
    is_inlier = task.is_anomaly == 0
    kept = task.is_first & (is_new | ~is_inlier)
    return np.flatnonzero(kept), int((task.is_first & is_inlier).sum())


def measured(folder: Path) -> pd.DataFrame:
    """A row a method and seed."""
    lines, done = [], set()
    for run in finished_runs(folder):
        task, config = load_task(run.config), run.config
        kept, count = chosen_rows(task)
        flags, arrays = task.is_anomaly[kept], read_arrays(run.folder / "scores.npz")
        counts = int((flags == 0).sum()), count, int(flags.sum())
        name = method_name(config.flow, config.num_flows or 0)
        scores = {f"{name}, {kind}": -arrays[field][kept] for kind, field in SCORES.items()}
        if (split := config.split_seed) not in done:
            scores |= controls(np.unique(task.x_train.numpy(), axis=0), task.x_test.numpy()[kept])
            done.add(split)
        lines += [
            {"method": method, "seed": config.seed}
            | dict(zip(COUNTS, counts, strict=True))
            | {measure: detection_metrics(flags, values)[measure] for measure in MEASURES}
            for method, values in scores.items()
        ]
    return pd.DataFrame(lines)


def write_tables(folder: Path) -> None:
    """Writes unseen.csv from finished runs, if there are any, and unseen.md from it."""
    if len(table := measured(folder)):
        table.to_csv(folder / "unseen.csv", index=False, float_format="%.6g")
    table = pd.read_csv(folder / "unseen.csv")
    lines = [
        {"method": method, "seeds": len(group)}
        | {HEADINGS[name]: mean_std(group[name], 4) for name in MEASURES}
        for method, group in table.groupby("method", sort=False)
    ]
    few, count, anomalies = table[COUNTS].iloc[0]
    write_page(
        folder / "unseen.md",
        f"# {folder.resolve().name}: inliers that no training row equals",
        markdown(pd.DataFrame(lines)),
        f"{few} of {count} distinct test inliers equal no training row once encoded; they are "
        f"scored beside the {anomalies} distinct anomalies. Made by `python -m results.kdd.unseen` "
        "from finished runs.",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and writes the tables."""
    values = parse(parser(__file__, __doc__), argv)
    if values.quick:
        run_quick("kdd", values.folder)
    write_tables(values.folder)


if __name__ == "__main__":
    run_script(main, "kdd")

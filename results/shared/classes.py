"""by_class.csv: the share of each class's test rows that is flagged at the true ratio."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pyro_vaeflow.escaping import csv_text
from pyro_vaeflow.experiments.results import finished_runs, read_arrays
from pyro_vaeflow.experiments.tasks import Task, load_task


def flagged_by_class(
    is_anomaly: ArrayLike, labels: ArrayLike, anomaly_score: ArrayLike
) -> dict[str, float]:
    """The share of each class's rows that is flagged at the true ratio, classes in name order.

    Recall for a class of anomalies, the rate of false flags for one of inliers. Rows that tie at
    the cut are flagged as if drawn at random.
    """
    names, scores = np.asarray(labels), np.asarray(anomaly_score)
    num_flagged = int(np.sum(is_anomaly))
    cut = np.sort(scores)[-num_flagged]
    above, tied = scores > cut, scores == cut
    shares = above + (num_flagged - above.sum()) / tied.sum() * tied
    return {str(name): float(shares[names == name].mean()) for name in np.unique(names)}


def classes_of(task: Task, scores: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Rows and flagged shares of each class, by score; nothing of two classes, where F1 says it."""
    classes = np.unique(task.labels, return_counts=True)
    if len(classes[0]) <= 2:
        return {}
    return {
        "classes": {str(c): int(count) for c, count in zip(*classes, strict=True)},
        "anomalous_classes": np.unique(task.labels[task.is_anomaly == 1]).tolist(),
        "flagged_by_class": {
            name: flagged_by_class(task.is_anomaly, task.labels, values)
            for name, values in scores.items()
        },
    }


def write_by_class(out: Path) -> pd.DataFrame:
    """Writes ``out/by_class.csv``, means over the seeds of finished runs, if there are any."""
    rows = []
    for run in finished_runs(out):
        arrays = read_arrays(run.folder / "scores.npz")
        scores = {
            "reconstruction": -arrays["expected_log_likelihood"],
            "importance": -arrays["log_evidence"],
        }
        found = classes_of(load_task(run.config), scores)
        method = {name: getattr(run.config, name) for name in ("dataset", "flow", "num_flows")}
        for score, shares in found.get("flagged_by_class", {}).items():
            for name, share in shares.items():
                of_class = {"class": name, "is_anomaly": int(name in found["anomalous_classes"])}
                counts = {"rows": found["classes"][name], "flagged": share}
                rows.append(method | {"score": score} | of_class | counts)
    if not rows:
        return pd.DataFrame()
    keys = [name for name in rows[0] if name not in ("rows", "flagged")]
    table = pd.DataFrame(rows).groupby(keys, sort=False, dropna=False).mean().reset_index()
    (out / "by_class.csv").write_text(csv_text(table, float_format="%.6g"))
    return table

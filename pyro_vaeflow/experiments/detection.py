"""What scores of a task's test rows find: of all rows, of distinct ones, and class by class."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_vaeflow.experiments.tasks import Task
from pyro_vaeflow.metrics import (
    auroc,
    average_precision,
    detection_metrics,
    flagged_by_class,
)


def detection(task: Task, scores: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """What each score finds among the test rows, among distinct ones, and in each of many classes.

    Raises:
        ValueError: a score is NaN somewhere, or the rows are of one kind.
    """
    first, classes = task.is_first, np.unique(task.labels, return_counts=True)
    measured: dict[str, Any] = {
        "num_test": len(task.x_test),
        "num_anomalies": int(task.is_anomaly.sum()),
        "num_features": task.x_train.shape[1],
        "num_distinct": int(first.sum()),
        "scores": {},
    }
    for name, values in scores.items():
        values = np.asarray(values)
        measured["scores"][name] = {
            **detection_metrics(task.is_anomaly, values),
            "auroc_distinct": auroc(task.is_anomaly[first], values[first]),
            "average_precision_distinct": average_precision(task.is_anomaly[first], values[first]),
        }
    if len(classes[0]) > 2:  # else recall and false flags say the same
        measured["classes"] = {str(c): int(count) for c, count in zip(*classes, strict=True)}
        measured["anomalous_classes"] = np.unique(task.labels[task.is_anomaly == 1]).tolist()
        measured["flagged_by_class"] = {
            name: flagged_by_class(task.is_anomaly, task.labels, values)
            for name, values in scores.items()
        }
    return measured

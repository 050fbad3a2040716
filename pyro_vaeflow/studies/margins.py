"""What a flow adds to the evidence of single rows, beside what lies between the classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from pyro_vaeflow.experiments.effects import BASE, CELL
from pyro_vaeflow.experiments.results import finished_runs, flat_settings, identity, read_arrays

Arrays = Mapping[str, np.ndarray]


def margins(out: Path) -> pd.DataFrame:
    """A row a flow's run that has the diagonal posterior's run of its cell and seed beside it.

    Columns are those of `margin` after data set, seed, posterior and cell. Empty without runs.
    """
    of_cells: dict[tuple[Any, ...], dict[tuple[str, int], Arrays]] = {}
    for run in finished_runs(out):
        if run.config.is_peer:
            continue
        settings = flat_settings(run.config)
        cell = run.config.dataset, run.config.seed, *(settings.get(name) for name in CELL)
        named, arrays = identity(run.config), read_arrays(run.folder / "scores.npz")
        of_cells.setdefault(cell, {})[named["flow"], named["num_flows"]] = arrays
    return pd.DataFrame(
        [
            dict(zip(("dataset", "seed", *CELL), cell, strict=True))
            | {"flow": model, "num_flows": depth}
            | margin(found[BASE, 0], arrays)
            for cell, found in of_cells.items()
            if (BASE, 0) in found
            for (model, depth), arrays in found.items()
            if model != BASE
        ]
    )


def margin(base: Arrays, flow: Arrays) -> dict[str, float]:
    """How far apart the base's evidence holds the classes, and how far the flow moves each of them.

    Args:
        base: of a run's test rows (n): is_anomaly, log_evidence and elbo, in nats.
        flow: the same of the same rows, under another posterior.

    Returns:
        margin: the median log evidence of inliers less that of outliers, under the base.
        slack_inliers, slack_outliers: medians of the base's log evidence less its ELBO; the most
            that a better posterior could do for the bound.
        gain_inliers, gain_outliers: medians of the flow's log evidence less the base's.
        rank_correlation: of the two log evidences over all rows (Spearman).

    Example:
        >>> base = {"is_anomaly": np.array([0, 0, 1]), "log_evidence": np.array([-1.0, -2.0, -9.0]),
        ...         "elbo": np.array([-2.0, -3.0, -9.5])}
        >>> found = margin(base, {**base, "log_evidence": base["log_evidence"] + 1.0})
        >>> [float(found[name]) for name in ("margin", "slack_outliers", "gain_inliers")]
        [7.5, 0.5, 1.0]
    """
    outlier = base["is_anomaly"] == 1
    evidence = base["log_evidence"]
    slack, gain = evidence - base["elbo"], flow["log_evidence"] - evidence
    found = {"margin": np.median(evidence[~outlier]) - np.median(evidence[outlier])}
    for name, values in (("slack", slack), ("gain", gain)):
        found[f"{name}_inliers"] = np.median(values[~outlier])
        found[f"{name}_outliers"] = np.median(values[outlier])
    return found | {"rank_correlation": spearmanr(evidence, flow["log_evidence"]).statistic}

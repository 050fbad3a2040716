"""Margins: what a flow adds to the evidence of rows, beside what lies between the classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from pyro_vaeflow.experiments.results import finished_runs, flat_settings, read_arrays
from results.shared.effects import CELL, POSTERIOR, effect, paired

from .design import central

Arrays = Mapping[str, np.ndarray]
KDD = "kddcup99"
AUROC = ("auroc_importance", "auroc_reconstruction")
NATS = ["margin", "slack_inliers", "slack_outliers", "gain_inliers", "gain_outliers"]


def margins(folder: Path) -> pd.DataFrame:
    """A row a flow's run that has the diagonal posterior's run of its cell and seed beside it.

    Columns are those of `margin` after data set, seed, cell and posterior. Empty without runs.
    """
    cells: dict[tuple[Any, ...], dict[tuple[str, int], Arrays]] = {}
    for run in finished_runs(folder):
        settings = flat_settings(run.config)
        cell = run.config.dataset, run.config.seed, *(settings.get(name) for name in CELL)
        posterior = run.config.flow, run.config.num_flows
        cells.setdefault(cell, {})[posterior] = read_arrays(run.folder / "scores.npz")
    return pd.DataFrame(
        [
            dict(zip(("dataset", "seed", *CELL), cell, strict=True))
            | {"flow": flow, "num_flows": depth}
            | margin(of_posterior["diagonal", 0], arrays)
            for cell, of_posterior in cells.items()
            if ("diagonal", 0) in of_posterior
            for (flow, depth), arrays in of_posterior.items()
            if flow != "diagonal"
        ]
    )


def margin(diagonal: Arrays, flow: Arrays) -> dict[str, float]:
    """How far apart the evidence holds the classes, and how far the flow moves each of them.

    Args:
        diagonal: of a run's test rows (n): is_anomaly, log_evidence and elbo, in nats.
        flow: the same of the same rows, under another posterior.

    Returns:
        margin: the median log evidence of inliers less that of outliers, under the diagonal.
        slack_inliers, slack_outliers: medians of the diagonal's log evidence less its ELBO; the
            most that a better posterior could do for the bound.
        gain_inliers, gain_outliers: medians of the flow's log evidence less the diagonal's.
        rank_correlation: of the two log evidences over all rows (Spearman).
    """
    outlier = diagonal["is_anomaly"] == 1
    evidence = diagonal["log_evidence"]
    slack, gain = evidence - diagonal["elbo"], flow["log_evidence"] - evidence
    nats = {"margin": np.median(evidence[~outlier]) - np.median(evidence[outlier])}
    for name, values in (("slack", slack), ("gain", gain)):
        nats[f"{name}_inliers"] = np.median(values[~outlier])
        nats[f"{name}_outliers"] = np.median(values[outlier])
    return nats | {"rank_correlation": spearmanr(evidence, flow["log_evidence"]).statistic}


def with_auroc(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `margins` beside what their flow changed of AUROC.

    Args:
        table: the study's summary, a row a run.
    """
    changes = paired(table)
    cell = [name for name in ("dataset", "seed", *POSTERIOR, *CELL) if name in changes]
    return rows.merge(changes[[*cell, AUROC[0]]], on=cell, validate="one_to_one")


def share_and_auroc(rows: pd.DataFrame) -> str:
    """How far flows move the classes apart, and whether detection follows."""
    inner = central(rows)
    inner = inner.assign(widened=inner["gain_inliers"] - inner["gain_outliers"])
    of_sets = inner.groupby("dataset")[["widened", "margin"]].mean()
    shares = (100 * of_sets["widened"] / of_sets["margin"]).map("{:.1f}%".format)
    rank = spearmanr(inner["widened"] / inner["margin"], inner[AUROC[0]]).statistic
    return (
        "Flows move the classes apart by these shares of what already lies between them: "
        + ", ".join(f"{name.removeprefix('adbench:')} {share}" for name, share in shares.items())
        + f". Over all pairs, this share and the change of AUROC have a rank correlation of "
        f"{rank:.2f} (Spearman, {len(inner)} pairs). All of these are of the scores that the runs "
        "gave, by 32 draws a row: nats of log p(x) they are not where k-hat is high, as it is for "
        "most outliers, whose evidence is too low then; on the ring by tens of nats."
    )


def margin_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the flows' runs: a row a data set, and one of KDD under the paper's likelihood."""
    groups = {str(name): group for name, group in central(rows).groupby("dataset")}
    paper = rows[(rows["dataset"] == KDD) & (rows["preprocessing"] == "minmax")]
    if len(paper):
        groups[f"{KDD}, Bernoulli"] = paper
    lines = []
    for name, group in groups.items():
        means = {n.replace("_", ", "): f"{group[n].mean():.2f}" for n in NATS}
        means["rank correlation"] = f"{group['rank_correlation'].mean():.3f}"
        means["AUROC, points"] = f"{100 * group[AUROC[0]].mean():+.2f}"
        lines.append({"data set": name, "pairs": len(group)} | means)
    return pd.DataFrame(lines)


def moves(of_choices: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What each of the `choices` does to detection: effects on AUROC, in points.

    The size is the mean over data sets of the effect's magnitude, whatever its sign in each.
    """
    lines = []
    for name, rows in of_choices.items():
        line: dict[str, object] = {"choice": name, "pairs": len(rows)}
        for measure in AUROC if len(rows) else ():
            by = measure.removeprefix("auroc_")
            size = rows.groupby("dataset")[measure].mean().abs().mean()
            line[f"by {by}"] = effect(rows, measure).text(100)
            line[f"size, by {by}"] = f"{100 * size:.2f}"
        lines.append(line)
    return pd.DataFrame(lines)

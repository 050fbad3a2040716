"""Margins: what a flow adds to the evidence of rows, beside what lies between the classes."""

from collections.abc import Iterator, Mapping

import pandas as pd
from scipy.stats import spearmanr

from pyro_vaeflow.experiments.results import method_name
from pyro_vaeflow.inference.importance import KHAT_LIMIT
from pyro_vaeflow.metrics import auroc
from results.shared.effects import effect

from .design import of_posterior, posteriors

AUROC = ("auroc_importance", "auroc_reconstruction")
CELL = ["dataset", "latent_dim", "seed"]
EVIDENCE = {  # of a row, by what: column
    "32 draws": "log_evidence_drawn",
    "refined": "log_evidence_refined",
    "quadrature": "quadrature",
}
NATS = ["margin", "slack_inliers", "slack_outliers", "gain_inliers", "gain_outliers", "widening"]


def margins(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a flow's run beside the diagonal posterior's of its cell, and what gives the evidence.

    Args:
        rows: of refined.csv or quadrature.csv, a line a row and run.

    Returns:
        Cell, posterior, and as `evidence` a key of `EVIDENCE`; then the numbers of `margin`.
    """
    lines = []
    for cell, of_cell in rows.groupby(CELL):
        diagonal = of_posterior(of_cell, "diagonal", 0)
        for flow, depth in posteriors(of_cell)[1:]:
            of_flow = of_posterior(of_cell, flow, depth)
            for name, column in EVIDENCE.items():
                if column in of_cell and of_flow[column].notna().all():
                    line = dict(zip(CELL, cell, strict=True)) | {"flow": flow, "num_flows": depth}
                    lines.append(line | {"evidence": name} | margin(diagonal, of_flow, column))
    return pd.DataFrame(lines)


def margin(diagonal: pd.DataFrame, flow: pd.DataFrame, column: str) -> dict[str, float]:
    """How far apart the evidence holds the classes, and how far the flow moves each of them.

    Args:
        diagonal: rows of a run, with row, is_anomaly, elbo and `column`, the log evidence; nats.
        flow: the same rows under another posterior.

    Returns:
        margin: the median log evidence of inliers less that of outliers, under the diagonal.
        slack_inliers, slack_outliers: medians of the diagonal's log evidence less its ELBO; the
            most that a better posterior could do for the bound.
        gain_inliers, gain_outliers: medians of the flow's log evidence less the diagonal's.
        mean_gain_inliers, mean_gain_outliers: their means.
        widening: the flow's margin less the diagonal's, between medians of classes.
        rank_correlation: of the two log evidences over all rows (Spearman).
        auroc: of the flow's evidence less that of the diagonal's.
    """
    both = diagonal.merge(flow, on=["row", "is_anomaly"], suffixes=("", "_flow"))
    before, after = both[column], both[f"{column}_flow"]
    values = pd.DataFrame({"before": before, "after": after, "gain": after - before})
    values["slack"] = before - both["elbo"]
    of_kind = values.groupby(both["is_anomaly"])
    (_, inliers), (_, outliers) = of_kind.median().iterrows()
    nats = {"margin": inliers["before"] - outliers["before"]}
    for name in ("slack", "gain"):
        nats |= {f"{name}_inliers": inliers[name], f"{name}_outliers": outliers[name]}
    for kind, gain in zip(("inliers", "outliers"), of_kind["gain"].mean(), strict=True):
        nats[f"mean_gain_{kind}"] = gain
    nats["widening"] = inliers["after"] - outliers["after"] - nats["margin"]
    nats["rank_correlation"] = spearmanr(before, after).statistic
    nats["auroc"] = auroc(both["is_anomaly"], -after) - auroc(both["is_anomaly"], -before)
    return nats


def margin_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the flows' runs: a line a data set, latent size and what gives the evidence."""
    lines = []
    for (name, latents, evidence), group in rows.groupby(["dataset", "latent_dim", "evidence"]):
        line = {"data set": name, "latents": latents, "evidence": evidence, "pairs": len(group)}
        line |= {n.replace("_", ", "): f"{group[n].mean():.2f}" for n in NATS}
        apart = group["gain_inliers"] - group["gain_outliers"]
        line["moved apart"] = f"{100 * apart.mean() / group['margin'].mean():.1f}%"
        line["rank correlation"] = f"{group['rank_correlation'].mean():.3f}"
        line["AUROC, points"] = f"{100 * group['auroc'].mean():+.2f}"
        lines.append(line)
    return pd.DataFrame(lines)


def gain_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Effects of flows with 8 latents over all data sets: a line what gives the evidence."""
    measures = {
        "mean_gain_inliers": ("mean gain, inliers, nats", 1),
        "gain_outliers": ("median gain, outliers, nats", 1),
        "widening": ("between medians of classes, nats", 1),
        "auroc": ("AUROC of these rows, points", 100),
    }
    lines = []
    for evidence, group in rows[rows["latent_dim"] == 8].groupby("evidence"):
        line = {"evidence": evidence, "pairs": len(group)}
        line |= {h: effect(group, n).text(factor) for n, (h, factor) in measures.items()}
        lines.append(line)
    return pd.DataFrame(lines)


def _classes(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Name of each posterior, how many rows of each class, and these."""
    for flow, depth in posteriors(rows):
        for kind, group in of_posterior(rows, flow, depth).groupby("is_anomaly"):
            yield method_name(flow, depth), f"{len(group)} {('inliers', 'outliers')[kind]}", group


def trust_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What refinement adds and what can be believed: a line a data set, posterior and class."""
    lines = []
    for (name, latents), of_set in rows.groupby(["dataset", "latent_dim"]):
        for posterior, count, group in _classes(of_set):
            line = {"data set": name, "latents": latents, "posterior": posterior, "rows": count}
            for evidence in ("drawn", "refined"):
                share = (group[f"khat_{evidence}"] > KHAT_LIMIT).mean()
                line[f"k-hat > {KHAT_LIMIT}, {evidence}"] = f"{share:.0%}"
            added = group["log_evidence_refined"] - group["log_evidence_drawn"]
            believed = added[~(group["khat_drawn"] > KHAT_LIMIT)]
            line["1 nat low, k-hat below, drawn"] = f"{(believed > 1.0).sum()} of {len(believed)}"
            line["refinement adds, mean"] = f"{added.mean():+.2f}"
            line["median"] = f"{added.median():+.2f}"
            line["standard error, median"] = f"{group['stderr_refined'].median():.3f}"
            lines.append(line)
    return pd.DataFrame(lines)


def quadrature_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Errors of log evidence beside quadrature, nats: a line a posterior, class and evidence."""
    lines = []
    for posterior, count, group in _classes(rows.dropna(subset=["quadrature"])):
        for name in ("32 draws", "refined"):
            error = group[EVIDENCE[name]] - group["quadrature"]
            line = {"posterior": posterior, "evidence": name, "rows": count}
            line |= {"mean error": f"{error.mean():+.3f}", "median": f"{error.median():+.3f}"}
            line["largest"] = f"{error.loc[error.abs().idxmax()]:+.2f}"
            line["within 0.1"] = f"{(error.abs() <= 0.1).mean():.0%}"
            lines.append(line)
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

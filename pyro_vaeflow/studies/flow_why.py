"""Why detection hardly moves: what a flow adds beside what lies between the classes."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from pyro_vaeflow.experiments.effects import CELL, POSTERIOR, effect, paired
from pyro_vaeflow.studies.flow_figures import MARGINS, central, complete
from pyro_vaeflow.studies.flow_words import said

KDD = "kddcup99"
LIKELIHOOD = "mixed likelihood for Bernoulli"
AUROC = ("auroc_importance", "auroc_reconstruction")


def with_auroc(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The rows beside what their flow changed of AUROC.

    Args:
        rows: as of `pyro_vaeflow.studies.margins.margins`.
        table: the study's summary, a row a run.
    """
    changed = paired(table)
    cell = [name for name in ("dataset", "seed", *POSTERIOR, *CELL) if name in changed]
    return rows.merge(changed[[*cell, AUROC[0]]], on=cell, validate="one_to_one")


def why_text(rows: pd.DataFrame) -> str:
    """What margins with AUROC say of KDD, and whether they say where detection moves."""
    both = central(rows)
    both = both.assign(widened=both["gain_inliers"] - both["gain_outliers"])
    share = both["widened"] / both["margin"]
    rank = spearmanr(share, both[AUROC[0]]).statistic
    of_sets = both.groupby("dataset")[[*MARGINS, "widened", AUROC[0]]].mean()
    means = of_sets.to_dict("index")
    most = str(of_sets[AUROC[0]].abs().idxmax())
    kdd, name, other = means[KDD], most.removeprefix("adbench:"), means[most]
    return (
        f"On KDD {kdd['margin']:.0f} nats of the base's evidence lie between the median inlier and "
        f"the median outlier. Its bound is short of the evidence by {kdd['slack_inliers']:.2f} "
        f"nats for inliers and {kdd['slack_outliers']:.2f} for outliers: a better posterior of "
        f"the same decoder could raise the bound by no more, and would leave the evidence as it "
        f"is. The decoders that were trained with flows add {kdd['gain_inliers']:+.2f} nats to the "
        f"evidence of inliers and {kdd['gain_outliers']:+.2f} to that of outliers, and so move the "
        f"classes apart by {_percent(kdd)} of what already lies between them. Detection moves most "
        f"on {name}, by {100 * other[AUROC[0]]:+.2f} points of AUROC: there flows add "
        f"{other['gain_inliers']:+.2f} and {other['gain_outliers']:+.2f} nats, which is "
        f"{_percent(other)} of {other['margin']:.0f}. Over all pairs, this share and the change of "
        f"AUROC have a rank correlation of {rank:.2f} (Spearman, {len(both)} pairs)."
    )


def why_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over the flows' runs: a row a data set, and one of KDD under the paper's likelihood."""
    paper = rows[(rows["dataset"] == KDD) & (rows["preprocessing"] == "minmax")]
    groups = {str(name): group for name, group in central(rows).groupby("dataset")}
    if len(paper):
        groups[f"{KDD}, Bernoulli"] = paper
    found = []
    for name, group in groups.items():
        means = {n.replace("_", ", "): f"{group[n].mean():.2f}" for n in MARGINS}
        means["rank correlation"] = f"{group['rank_correlation'].mean():.3f}"
        means["AUROC, points"] = f"{100 * group[AUROC[0]].mean():+.2f}"
        found.append({"data set": name, "pairs": len(group)} | means)
    return pd.DataFrame(found)


def moves(of_choices: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What each of the `choices` does to detection: effects on AUROC, in points.

    The size is the mean over data sets of the effect's magnitude, whatever its sign in each.
    """
    found = []
    for name, rows in of_choices.items():
        row: dict[str, object] = {"choice": name, "pairs": len(rows)}
        for measure in AUROC if len(rows) else ():
            by = measure.removeprefix("auroc_")
            size = rows.groupby("dataset")[measure].mean().abs().mean()
            row[f"by {by}"] = said(effect(rows, measure), 100)
            row[f"size, by {by}"] = f"{100 * size:.2f}"
        found.append(row)
    return pd.DataFrame(found)


def _percent(means: Mapping[Any, float]) -> str:
    return f"{100 * means['widened'] / means['margin']:.1f}%"


def choices(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Differences that each choice makes, all else alike, where the table has both sides."""
    inner = central(table)
    found = {"a flow for the diagonal": complete(paired(inner))}
    for small, large in ((2, 8), (8, 32)):
        rows = paired(inner, {"latent_dim": small}, ("latent_dim",))
        found[f"{large} latents for {small}"] = rows[rows["latent_dim"] == large]
    if "annealing.kind" in table:
        rows = paired(table, {"annealing.kind": "constant"}, ("annealing.kind",))
        for kind in ("cyclical", "capacity"):
            found[f"{kind} schedule for none"] = rows[rows["annealing.kind"] == kind]
    if "preprocessing" in table:
        apart = ("preprocessing", "likelihood")
        found[LIKELIHOOD] = paired(table, {"preprocessing": "minmax"}, apart)
    return found

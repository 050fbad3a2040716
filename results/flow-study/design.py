"""The study's design: its factorial, its posteriors, and the choices that it compares."""

from collections.abc import Sequence

import pandas as pd

from results.shared.effects import paired

POSTERIORS = [  # in the order of tables and figures
    ("diagonal", 0),
    ("planar", 5),
    ("planar", 20),
    ("planar", 50),
    ("iaf", 5),
    ("iaf", 20),
    ("iaf", 50),
    ("spline", 2),
]
FACTORIAL = [("planar", 5), ("planar", 20), ("iaf", 5), ("iaf", 20)]  # flows at every size
LIKELIHOOD = "mixed likelihood for Bernoulli"


def posteriors(table: pd.DataFrame) -> Sequence[tuple[str, int]]:
    """Flow and depth of the rows, in the order of `POSTERIORS`, others after them."""
    pairs = set(zip(table["flow"], table["num_flows"], strict=True))
    known = [pair for pair in POSTERIORS if pair in pairs]
    return [*known, *sorted(pairs - set(known))]


def of_posterior(table: pd.DataFrame, flow: str, depth: int) -> pd.DataFrame:
    """The rows of one posterior."""
    return table[(table["flow"] == flow) & (table["num_flows"] == depth)]


def central(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the factorial: neither another schedule nor the paper's likelihood."""
    is_central = pd.Series(True, index=table.index)
    if "annealing.kind" in table:
        is_central &= ~table["annealing.kind"].isin(["cyclical", "capacity"])
    if "preprocessing" in table:
        is_central &= table["preprocessing"] != "minmax"
    return table[is_central]


def complete(differences: pd.DataFrame) -> pd.DataFrame:
    """The differences of the factorial's flows in the cells where all of them have run.

    So that means over cells compare posteriors and nothing else.
    """
    pairs = pd.Series(list(zip(differences["flow"], differences["num_flows"], strict=True)))
    rows = differences[pairs.isin(FACTORIAL).to_numpy()]
    cell = rows.groupby(["dataset", "seed", "latent_dim"])["flow"]
    return rows[cell.transform("size") == len(FACTORIAL)]


def choices(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Differences that each choice makes, all else alike, where the table has both sides."""
    inner = central(table)
    differences = {"a flow for the diagonal": complete(paired(inner))}
    for small, large in ((2, 8), (8, 32)):
        rows = paired(inner, {"latent_dim": small}, ("latent_dim",))
        differences[f"{large} latents for {small}"] = rows[rows["latent_dim"] == large]
    if "annealing.kind" in table:
        rows = paired(table, {"annealing.kind": "constant"}, ("annealing.kind",))
        for kind in ("cyclical", "capacity"):
            differences[f"{kind} schedule for none"] = rows[rows["annealing.kind"] == kind]
    if "preprocessing" in table:
        differ_in = ("preprocessing", "likelihood")
        differences[LIKELIHOOD] = paired(table, {"preprocessing": "minmax"}, differ_in)
    return differences


def over_sets(table: pd.DataFrame, measure: str) -> float:
    """The mean over data sets of the mean over their runs."""
    return float(table.groupby("dataset")[measure].mean().mean())

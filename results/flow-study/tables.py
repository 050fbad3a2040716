"""The study's tables: effects, gaps, margins and costs, from summary.csv and refined.csv."""

from collections.abc import Sequence

import pandas as pd

from pyro_vaeflow.experiments.results import method_name
from pyro_vaeflow.experiments.study import load_study
from results.shared.effects import Effect, effect, effects, paired
from results.shared.pages import markdown

from .design import central, choices, complete, of_posterior, over_sets, posteriors
from .margins import gain_table, margin_table, moves, quadrature_table, trust_table

GAPS = ("approximation_gap", "amortization_gap")
HEADINGS = {  # measure -> heading, factor, digits
    "elbo": ("ELBO, nats", 1, 2),
    "log_evidence": ("log evidence, nats", 1, 2),
    "approximation_gap": ("approximation gap, nats", 1, 2),
    "amortization_gap": ("amortization gap, nats", 1, 2),
    "active_units": ("active units", 1, 1),
    "auroc_importance": ("AUROC, importance, points", 100, 2),
    "auroc_reconstruction": ("AUROC, reconstruction, points", 100, 2),
    "average_precision_importance": ("AP, importance, points", 100, 2),
    "f1_true_ratio_importance": ("F1, true ratio, importance, points", 100, 2),
}
BRIEF = ["elbo", "log_evidence", "auroc_importance", "auroc_reconstruction"]
BY_SIZE = ["elbo", "log_evidence", "approximation_gap", "auroc_importance"]


def study_tables(table: pd.DataFrame, of_runs: pd.DataFrame, rows: pd.DataFrame) -> dict[str, str]:
    """Heading -> Markdown of each table.

    Args:
        table: summary.csv, a row a run.
        of_runs: as of `margins`.
        rows: refined.csv, a line a row and run.
    """
    factorial = central(table)
    differences = complete(paired(factorial))
    cells = differences[["dataset", "seed", "latent_dim"]].drop_duplicates()
    of_flow = {
        flow: differences[differences["flow"] == flow].sort_values(["num_flows", "latent_dim"])
        for flow in ("planar", "iaf")
    }
    of_depth = factorial[(factorial["num_flows"] == 20) & factorial["flow"].isin(["planar", "iaf"])]
    lead = table["auroc_importance"] - table["auroc_reconstruction"]
    score = effect(factorial.assign(lead=lead), "lead").text(100)
    return {
        "Runs": markdown(progress(table)),
        "Flows less the diagonal posterior": effects_table(
            pd.concat([differences.assign(flow="all flows", num_flows=0), differences]),
            ["flow", "num_flows"],
            [*HEADINGS],
        ),
        "Flows with 8 latents by 32 draws and refined": markdown(gain_table(of_runs)),
        "What lies between the classes": markdown(margin_table(of_runs)),
        "What refinement adds": markdown(trust_table(rows)),
        "Evidence beside quadrature, ring with 2 latents": markdown(quadrature_table(rows)),
        "What choices do to AUROC, in points": f"{markdown(moves(choices(table)))}\n\n"
        f"The importance score less the reconstruction score, all posteriors together: {score}.",
        "Gaps, nats a row": markdown(gap_table(factorial.merge(cells))),
        "Planar by latent size": effects_table(
            of_flow["planar"], ["flow", "num_flows", "latent_dim"], BY_SIZE
        ),
        "Approximation gap of planar 20 less IAF 20, nats": planar_less_iaf(of_depth),
        "IAF by latent size": effects_table(
            of_flow["iaf"], ["flow", "num_flows", "latent_dim"], BY_SIZE
        ),
        "Depth 50, spline, likelihood and schedule": other_factors(table),
        "Medians of the cost": markdown(costs(factorial)),
    }


def effects_table(differences: pd.DataFrame, by: Sequence[str], measures: Sequence[str]) -> str:
    """Effects on the measures, a row a group, as Markdown."""
    lines = []
    for row in effects(differences, by, measures).to_dict("records"):
        line = {"factor": row["factor"]} if "factor" in row else {}
        line["posterior"] = method_name(row["flow"], row["num_flows"]).removesuffix(" 0")
        if "latent_dim" in row:
            line["latents"] = row["latent_dim"]
        line["runs"] = row["runs"]
        for name in measures:
            heading, factor, digits = HEADINGS[name]
            of_row = Effect(row[name], row[f"{name}_low"], row[f"{name}_high"])
            line[heading] = of_row.text(factor, digits)
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def planar_less_iaf(table: pd.DataFrame) -> str:
    """The approximation gap's difference by latent size, and its rise from smallest to largest."""
    behind = paired(table, reference={"flow": "iaf"})
    sizes = {
        f"{size} latents": effect(rows, "approximation_gap").text()
        for size, rows in behind.groupby("latent_dim")
    }
    small, large = (
        behind[behind["latent_dim"] == size].set_index(["dataset", "seed"])["approximation_gap"]
        for size in (behind["latent_dim"].min(), behind["latent_dim"].max())
    )
    rise = (large - small).dropna().rename("rise").reset_index()
    return markdown(pd.DataFrame([sizes | {"largest less smallest": effect(rise, "rise").text()}]))


def other_factors(table: pd.DataFrame) -> str:
    """Effects with 8 latents, under the paper's likelihood, and under each schedule."""
    parts = {"8 latents": central(table[table["latent_dim"] == 8])}
    if "preprocessing" in table:
        parts["Bernoulli, min-max"] = table[table["preprocessing"] == "minmax"]
    if "annealing.kind" in table:
        for kind in ("cyclical", "capacity"):
            parts[f"schedule {kind}"] = table[table["annealing.kind"] == kind]
    rows = pd.concat([paired(rows).assign(factor=name) for name, rows in parts.items()])
    return effects_table(rows, ["factor", "flow", "num_flows"], [*BRIEF, *GAPS])


def progress(table: pd.DataFrame) -> pd.DataFrame:
    """How much of the design has run: runs of each data set and seed."""
    configs = load_study("flow-study").expand()
    planned = pd.DataFrame([{"dataset": c.dataset, "seed": c.seed} for c in configs])
    of_plan = planned.groupby(["dataset", "seed"]).size()
    done = table.groupby(["dataset", "seed"]).size().reindex(of_plan.index, fill_value=0)
    shown = (done.astype(str) + " of " + of_plan.astype(str)).unstack().add_prefix("seed ")
    return shown.rename_axis("data set").reset_index()


def gap_table(table: pd.DataFrame) -> pd.DataFrame:
    """Means over data sets of gaps, KL, active units and rows that cannot be trusted."""
    lines = []
    for posterior in posteriors(table):
        rows = of_posterior(table, *posterior)
        line: dict[str, object] = {"posterior": method_name(*posterior), "runs": len(rows)}
        for name in [*GAPS, "kl", "active_units", "gap_khat_above_0.7"]:
            line[name.replace("_", " ").removeprefix("gap ")] = round(over_sets(rows, name), 2)
        lines.append(line)
    return pd.DataFrame(lines)


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds of each posterior over those of the diagonal one in the same cell, medians."""
    cell = ["dataset", "seed", "latent_dim"]
    diagonal = table[table["flow"] == "diagonal"].set_index(cell)
    lines = []
    for posterior in posteriors(table):
        rows = of_posterior(table, *posterior).set_index(cell)
        line: dict[str, object] = {"posterior": method_name(*posterior)}
        for name, heading in (("train_seconds", "training"), ("score_seconds", "scoring")):
            ratio = (rows[name] / diagonal[name].reindex(rows.index)).median()
            line[f"{heading}, times the diagonal's"] = round(float(ratio), 1)
        lines.append(line)
    return pd.DataFrame(lines)

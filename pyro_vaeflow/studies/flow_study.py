"""The page of the study of flow posteriors: ``python -m pyro_vaeflow.studies.flow_study DIR``.

Rebuilds summary.csv and margins.csv from the finished runs in DIR, if they are there, and writes
README.md and its figures from them. Every number on the page, and every word that says which way an
effect goes, is computed.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pyro_vaeflow.experiments.effects import BASE, FEWEST, Effect, effect, effects, paired
from pyro_vaeflow.experiments.report import write_tables
from pyro_vaeflow.experiments.results import method_name
from pyro_vaeflow.experiments.study import load_study
from pyro_vaeflow.experiments.text_tables import as_text
from pyro_vaeflow.studies.flow_figures import (
    central,
    complete,
    of_posterior,
    posteriors,
    study_figures,
)
from pyro_vaeflow.studies.flow_page import PAGE
from pyro_vaeflow.studies.flow_why import (
    LIKELIHOOD,
    choices,
    moves,
    why_table,
    why_text,
    with_auroc,
)
from pyro_vaeflow.studies.flow_words import VERDICTS, over_sets, said, verb, verdict, wrapped
from pyro_vaeflow.studies.margins import margins

GAPS = ("approximation_gap", "amortization_gap")
SHOWN = {  # measure -> heading, factor, digits
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
CENTRE = 8  # latents


def write_page(out: Path) -> Path:
    """Writes README.md, effects.csv and the figures of the study in `out`; returns the page.

    Raises:
        FileNotFoundError: there are neither runs nor a summary.csv and a margins.csv.
    """
    write_tables(out)
    table = pd.read_csv(out / "summary.csv")
    apart = margins(out)
    if len(apart):
        apart.to_csv(out / "margins.csv", index=False, float_format="%.6g")
    rows = pd.read_csv(out / "margins.csv")
    differences = complete(paired(central(table)))
    by_posterior = effects(differences, ["flow", "num_flows"], [*SHOWN])
    by_posterior.to_csv(out / "effects.csv", index=False, float_format="%.6g")
    (out / "figures").mkdir(exist_ok=True)
    for name, figure in study_figures(table, rows).items():
        figure.savefig(out / "figures" / f"{name}.png", dpi=80)
    path = out / "README.md"
    path.write_text(wrapped(PAGE.format(**findings(table, rows))))
    return path


def findings(table: pd.DataFrame, rows: pd.DataFrame) -> dict[str, object]:
    """What the page says, by the names of its gaps."""
    factorial = central(table)
    differences = complete(paired(factorial))
    cells = differences[["dataset", "seed", "latent_dim"]].drop_duplicates()
    compared = factorial.merge(cells)  # the base where it is compared with flows
    base, flows = (compared[(compared["flow"] == BASE) == is_base] for is_base in (True, False))
    of_choices, known = choices(table), with_auroc(rows, table)
    best = max(posteriors(differences), key=lambda p: _gain(differences, p))
    return {
        "progress": progress(table),
        "answer": answer(differences, base, flows, of_choices.get(LIKELIHOOD)),
        "pairs": len(differences),
        "seeds": _seeds(table),
        "effects": _table(effects(differences, ["flow", "num_flows"], [*SHOWN]), [*SHOWN]),
        "why": why_text(known),
        "margins": as_text(why_table(known), "md"),
        "moves": as_text(moves(of_choices), "md"),
        "gaps": as_text(_gap_table(compared), "md"),
        "planar_verdict": planar_is_limited(factorial),
        "planar": _by_size(differences, "planar"),
        "iaf_verdict": iaf_helps(differences),
        "iaf": _by_size(differences, "iaf"),
        "others": other_factors(table),
        "advice": advice(differences),
        "best": method_name(*best),
        "best_gain": said(effect(of_posterior(differences, *best), "log_evidence")),
        "best_detection": said(effect(of_posterior(differences, *best), "auroc_importance"), 100),
        "scores": _scores(factorial),
        "khat_base": f"{100 * over_sets(base, 'gap_khat_above_0.7'):.0f}%",
        "khat_flows": f"{100 * over_sets(flows, 'gap_khat_above_0.7'):.0f}%",
        "costs": as_text(_costs(factorial), "md"),
    }


def answer(
    differences: pd.DataFrame,
    base: pd.DataFrame,
    flows: pd.DataFrame,
    likelihoods: pd.DataFrame | None,
) -> str:
    """The three sentences of the study's question, beside what the likelihood does, if known."""
    bound, evidence = (effect(differences, name) for name in ("elbo", "log_evidence"))
    importance, reconstruction = (
        effect(differences, f"auroc_{s}") for s in ("importance", "reconstruction")
    )
    of_base, of_flows = ([over_sets(rows, gap) for gap in GAPS] for rows in (base, flows))
    larger = ["the family" if a > b else "the encoder" for a, b in (of_base, of_flows)]
    also = "also" if larger[0] == larger[1] else "instead"
    beside = ""
    if likelihoods is not None:
        moved = said(effect(likelihoods, "auroc_importance"), 100)
        beside = (
            f", where a mixed likelihood for the paper's Bernoulli moves the former by {moved} "
            "points"
        )
    return (
        f"A more flexible posterior {verb(bound)} the test bound, by {said(bound)} nats a row, "
        f"and {verb(evidence)} the log evidence, by {said(evidence)} nats a row. It "
        f"{verb(importance)} detection by the importance score, AUROC by {said(importance, 100)} "
        f"points, and {verb(reconstruction)} that by the reconstruction score, by "
        f"{said(reconstruction, 100)} points{beside}. Of the base's inference gap of "
        f"{sum(of_base):.2f} nats a row its family has {of_base[0]:.2f} and amortization "
        f"{of_base[1]:.2f}, under flows these are {of_flows[0]:.2f} and {of_flows[1]:.2f}: the "
        f"larger limit is {larger[0]} under the base and {also} {larger[1]} under flows."
    )


def advice(differences: pd.DataFrame) -> str:
    """What follows for a practitioner from the signs of the effects."""
    evidence, auroc = (effect(differences, m).sign for m in ("log_evidence", "auroc_importance"))
    nats = (
        "A flow is worth its cost where the numbers wanted are nats, bounds and evidences to "
        "compare models by"
        if evidence > 0
        else "Not even for nats is a flow sure to be worth its cost"
    )
    order = (
        "it also puts rows into a better order, so take it where a point of AUROC counts"
        if auroc > 0
        else "where only the order of rows matters, start with the base, and spend the time on "
        "likelihood, prior and latent size"
    )
    return f"{nats}; {order}."


def planar_is_limited(table: pd.DataFrame) -> str:
    """The first hypothesis: planar layers fall behind IAF layers as the latent size rises."""
    same = table[(table["num_flows"] == 20) & table["flow"].isin(["planar", "iaf"])]
    apart = paired(same, other={"flow": "iaf"})
    small, large = (
        apart[apart["latent_dim"] == size].set_index(["dataset", "seed"])["approximation_gap"]
        for size in (apart["latent_dim"].min(), apart["latent_dim"].max())
    )
    rise = effect((large - small).dropna().rename("rise").reset_index(), "rise")
    sizes = [
        f"{said(effect(rows, 'approximation_gap'))} at {size}"
        for size, rows in apart.groupby("latent_dim")
    ]
    return (
        f"**{verdict(rise).capitalize()}.** Planar 20 less IAF 20, same cell: the "
        f"approximation gap differs by {', '.join(sizes)} latents, nats a row; from the smallest "
        f"to the largest size the difference moves by {said(rise)}."
    )


def iaf_helps(differences: pd.DataFrame) -> str:
    """The second hypothesis: there are sizes at which IAF layers help."""
    iaf = differences[differences["flow"] == "iaf"]
    found = {
        measure: [
            f"{method_name('iaf', rows['num_flows'].iloc[0])} at {size}"
            for (_, size), rows in iaf.groupby(["num_flows", "latent_dim"])
            if effect(rows, measure).sign > 0
        ]
        for measure in BRIEF[:3]
    }
    names = ("bound", "evidence", "AUROC by the importance score")
    parts = [
        f"the {name} " + (f"of {', '.join(cells)} latents" if cells else "of none")
        for name, cells in zip(names, found.values(), strict=True)
    ]
    known = effect(iaf[iaf["latent_dim"] == iaf["latent_dim"].min()], "elbo")
    said_of = VERDICTS[int(any(found.values()))] if known.low == known.low else verdict(known)
    return (
        f"**{said_of.capitalize()}.** Above the base, with the whole interval, are "
        + ", ".join(parts)
        + "."
    )


def other_factors(table: pd.DataFrame) -> str:
    """Effects at the centre, under the paper's likelihood, and under each schedule."""
    parts = {"8 latents": central(table[table["latent_dim"] == CENTRE])}
    if "preprocessing" in table:
        parts["Bernoulli, min-max"] = table[table["preprocessing"] == "minmax"]
    if "annealing.kind" in table:
        for kind in ("cyclical", "capacity"):
            parts[f"schedule {kind}"] = table[table["annealing.kind"] == kind]
    parts = {name: paired(rows) for name, rows in parts.items()}
    rows = pd.concat([rows.assign(factor=name) for name, rows in parts.items()])
    by = ["factor", "flow", "num_flows"]
    return _table(effects(rows, by, [*SHOWN]), BRIEF + [*GAPS], first=("factor",))


def progress(table: pd.DataFrame) -> str:
    """How much of the design has run: runs of each data set and seed."""
    planned = [(c.dataset, c.seed) for c in load_study("flow-study").expand()]
    of_plan = pd.Series(1, pd.MultiIndex.from_tuples(planned)).groupby(level=[0, 1]).sum()
    done = table.groupby(["dataset", "seed"]).size().reindex(of_plan.index, fill_value=0)
    shown = (done.astype(str) + " of " + of_plan.astype(str)).unstack()
    shown.columns = [f"seed {seed}" for seed in shown.columns]
    text = as_text(shown.rename_axis("data set").reset_index(), "md")
    missing = int(of_plan.sum() - done.sum())
    if not missing:
        return f"All {of_plan.sum()} runs are finished.\n\n{text}"
    return (
        f"**{done.sum()} of the {of_plan.sum()} runs are finished, {missing} are missing**: what "
        f"follows is of these runs, and the same command goes on.\n\n{text}"
    )


def _table(found: pd.DataFrame, measures: Sequence[str], first: Sequence[str] = ()) -> str:
    rows = []
    for row in found.to_dict("records"):
        cells = {name: row[name] for name in first}
        cells["posterior"] = method_name(row["flow"], row["num_flows"])
        if "latent_dim" in row:
            cells["latents"] = row["latent_dim"]
        cells["runs"] = row["runs"]
        for name in measures:
            heading, factor, digits = SHOWN[name]
            ends = (row[name], row[f"{name}_low"], row[f"{name}_high"])
            cells[heading] = said(Effect(*ends), factor, digits)
        rows.append(cells)
    return as_text(pd.DataFrame(rows), "md")


def _by_size(differences: pd.DataFrame, model: str) -> str:
    rows = differences[differences["flow"] == model].sort_values(["num_flows", "latent_dim"])
    found = effects(rows, ["flow", "num_flows", "latent_dim"], [*SHOWN])
    return _table(found, [*BRIEF[:2], "approximation_gap", BRIEF[2]])


def _gap_table(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for posterior in posteriors(table):
        own = of_posterior(table, *posterior)
        row: dict[str, object] = {"posterior": method_name(*posterior), "runs": len(own)}
        for name in [*GAPS, "kl", "active_units", "gap_khat_above_0.7"]:
            row[name.replace("_", " ").removeprefix("gap ")] = round(over_sets(own, name), 2)
        rows.append(row)
    return pd.DataFrame(rows)


def _costs(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    cell = ["dataset", "seed", "latent_dim"]
    base = table[table["flow"] == BASE].set_index(cell)
    for posterior in posteriors(table):
        own = of_posterior(table, *posterior).set_index(cell)
        row: dict[str, object] = {"posterior": method_name(*posterior)}
        for name, heading in (("train_seconds", "training"), ("score_seconds", "scoring")):
            ratio = (own[name] / base[name].reindex(own.index)).median()
            row[f"{heading}, times the base's"] = round(float(ratio), 1)
        rows.append(row)
    return pd.DataFrame(rows)


def _scores(table: pd.DataFrame) -> str:
    better = table["auroc_importance"] - table["auroc_reconstruction"]
    found = effect(table.assign(lead=better), "lead")
    return f"{verb(found)} AUROC, by {said(found, 100)} points"


def _gain(differences: pd.DataFrame, posterior: tuple[str, int]) -> float:
    return effect(of_posterior(differences, *posterior), "log_evidence").mean


def _seeds(table: pd.DataFrame) -> str:
    sets, pairs = table["dataset"].nunique(), len(table[["dataset", "seed"]].drop_duplicates())
    return (
        f"Behind this are {len(table)} runs: {sets} data sets, {table['seed'].nunique()} seeds, "
        f"{pairs} pairs of both; brackets are 95% intervals; fewer than {FEWEST} pairs have none"
    )


def main() -> None:
    """Reads the command line and runs `write_page`."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the study's results folder")
    print(write_page(parser.parse_args().out))


if __name__ == "__main__":
    main()

"""What a results folder keeps: tables, and a page of numbers, what made them, and settings."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pyro_vaeflow.experiments.benchmark import write_benchmark
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.paper import PAPER_SOURCE
from pyro_vaeflow.experiments.peers import PEERS
from pyro_vaeflow.experiments.results import FinishedRun, finished_runs, flat_settings
from pyro_vaeflow.experiments.tables import (
    DISTINCT,
    HEADINGS,
    PAPER_HEADING,
    aggregate,
    by_class,
    by_run,
    summary,
)
from pyro_vaeflow.experiments.text_tables import as_text


def write_tables(out: Path, published: Path | None = None) -> pd.DataFrame | None:
    """Rebuilds summary.csv and table.md from the finished runs; None if there is none.

    summary.csv has a row a run and score, or a row a run where gaps were measured. Where data sets
    have more than two classes, by_class.csv as well; of a study over many data sets, what
    `write_benchmark` makes, beside the `published` table if one is given.
    """
    runs = finished_runs(out)
    if not runs:
        return None
    table = summary(runs)
    with_gaps = "approximation_gap" in table
    kept = by_run(table) if with_gaps else table
    kept.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    (out / "table.md").write_text(_report(out.resolve().name, runs, aggregate(table)))
    classes = by_class(runs)
    if len(classes):
        classes.to_csv(out / "by_class.csv", index=False, float_format="%.6g")
    if not with_gaps:  # such a study compares posteriors of one model, not methods
        write_benchmark(table, out, published)
    return table


def _report(title: str, runs: Sequence[FinishedRun], table: pd.DataFrame) -> str:
    parts = [f"# {title}", as_text(table, "md")]
    parts.append(
        "Mean ± standard deviation over seeds. ELBO, log evidence and KL are nats a row, over the "
        "test rows that are inliers. Seconds are of one run beside the others of its call; one "
        "scoring pass gives both scores."
    )
    if peers := {run.config.detector for run in runs if run.config.is_peer}:
        said = {name: inspect.getdoc(PEERS[name]) or "" for name in PEERS if name in peers}
        about = [f"- {name}: {text.splitlines()[0]}" for name, text in said.items()]
        parts.append("Peers and controls, each with a score of its own:\n\n" + "\n".join(about))
    if HEADINGS[DISTINCT[0]] in table:
        parts.append("Distinct rows: of test rows equal in all columns and in kind, the first.")
    if PAPER_HEADING in table:
        parts.append(f"Paper's F1: {PAPER_SOURCE}")
    commands = commands_of(runs)
    made_by = sorted({_origin(run) for run in runs})
    parts += ["## Made by", "\n".join(["```", *commands, "```"]), "\n".join(made_by)]
    settings: dict[str, Any] = {"seeds": sorted({run.config.seed for run in runs})}
    settings |= settings_of([run.config for run in runs if not run.config.is_peer])
    if of_peers := settings_of([run.config for run in runs if run.config.is_peer]):
        settings["peers"] = of_peers
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    parts += ["## Settings", f"```yaml\n{text}```"]
    return "\n\n".join(parts) + "\n"


def commands_of(runs: Sequence[FinishedRun]) -> list[str]:
    """What made these runs, each command once."""
    return sorted({run.metrics["command"] for run in runs if run.metrics["command"]})


def settings_of(configs: Sequence[ExperimentConfig]) -> dict[str, Any]:
    """What these share and what tells their variants apart, each variant with its data sets."""
    flat = {config.digest: flat_settings(config) for config in configs}
    variants: dict[str, dict[str, Any]] = {}
    for settings in flat.values():
        settings.pop("seed")
        dataset = settings.pop("dataset")
        variants.setdefault(repr(settings), {**settings, "dataset": []})["dataset"].append(dataset)
    kinds = [{**kind, "dataset": _one_or_all(kind["dataset"])} for kind in variants.values()]
    names = list(dict.fromkeys(name for kind in kinds for name in kind))
    apart = [n for n in names if len({repr(kind.get(n)) for kind in kinds}) > 1]
    if not kinds:
        return {}
    shared = {n: v for n, v in kinds[0].items() if n not in apart}
    rest = [{n: kind[n] for n in apart if n in kind} for kind in kinds] if apart else []
    return {"shared": shared, "variants": rest}


def _one_or_all(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names


def _origin(run: FinishedRun) -> str:
    known = run.metrics["versions"] | {"threads a run": run.metrics["threads"]}
    return "- " + ", ".join(f"{name} {value}" for name, value in known.items())

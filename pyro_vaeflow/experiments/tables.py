"""Tables of a results folder, for people: means over seeds, what made them, and the settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pyro_vaeflow.escaping import csv_text, markdown, visible
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.results import (
    DETECTION,
    DISTINCT,
    HELD_OUT,
    IDENTITY,
    FinishedRun,
    finished_runs,
    flat_settings,
    method_name,
    settings_apart,
    summary,
)
from pyro_vaeflow.plain_files import write_whole

HEADINGS = {
    "f1_top20": "F1, top 20%",
    "f1_true_ratio": "F1, true ratio",
    "auroc": "AUROC",
    "average_precision": "AP",
    "auroc_distinct": "AUROC, distinct rows",
    "average_precision_distinct": "AP, distinct rows",
    "elbo": "ELBO",
    "log_evidence": "log evidence",
    "kl": "KL",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
    "active_units": "active units",
    "train_seconds": "train s",
    "score_seconds": "score s",
}
# Of what is measured, by how soon a terminal shows it.
ON_TERMINAL = "AUROC|AP|log evidence|seeds|train s|F1, true ratio|F1, top 20%".split("|")


def write_tables(out: Path) -> pd.DataFrame | None:
    """Writes summary.csv and table.md of the finished runs; None if there is none."""
    runs = finished_runs(out)
    if not runs:
        return None
    table = summary(runs)
    write_whole(out / "summary.csv", csv_text(table, float_format="%.6g").encode())
    page = _page(out.resolve().name, runs, aggregate(table))
    write_whole(out / "table.md", page.encode())
    return table


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds of a `summary`, as text."""
    keys = [*IDENTITY, *settings_apart(table), "score"]
    rows = []
    # Missing settings are a group of their own; rows keep the summary's order.
    for key, group in table.groupby(keys, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"seeds": len(group)}
        for name, heading in {**HEADINGS, **{name: name for name in HELD_OUT}}.items():
            if name in group:
                digits = 4 if name in [*DETECTION, *DISTINCT] else 1 if heading[-2:] == " s" else 3
                row[heading] = mean_std(group[name], digits)
        rows.append(row)
    return pd.DataFrame(rows)


def on_terminal(table: pd.DataFrame, width: int) -> str:
    """The columns of an `aggregate` that `width` characters have room for, as Markdown.

    First come data set, posterior, score and AUROC, then the settings that tell rows apart, then
    what else is measured.
    """
    names = map(method_name, table["flow"], table["num_flows"])
    table = table.assign(flow=list(names)).drop(columns="num_flows")
    last = {str(name): str(name).rpartition(".")[2] for name in table}
    table = table.rename(columns={n: o for n, o in last.items() if [*last.values()].count(o) == 1})
    keys = list(table.loc[:, :"score"])
    same = [name for name in keys if name != "flow" and table[name].nunique() < 2]
    first = [name for name in ("dataset", "flow", "score") if name not in same]
    order = [*first, ON_TERMINAL[0], *(n for n in keys if n not in same), *ON_TERMINAL, *same]
    shown: list[str] = []
    for name in [name for name in dict.fromkeys(order) if name in table]:
        wider = [str(other) for other in table if other in (*shown, name)]
        if len(as_text(table[wider], "md").partition("\n")[0]) <= width:
            shown = wider
    return as_text(table[shown], "md")


def mean_std(values: pd.Series, digits: int) -> str:
    """Mean and, of more than one value, standard deviation, as text; empty where there is none.

    Example:
        >>> mean_std(pd.Series([1.0, 3.0]), 2), mean_std(pd.Series([1.0]), 2)
        ('2.00 ± 1.41', '1.00')
    """
    values = values.dropna()
    if values.empty:
        return ""
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def as_text(frame: pd.DataFrame, style: str) -> str:
    """A frame as ``md``, ``csv`` or ``latex`` text; LaTeX wants the package booktabs.

    Example:
        >>> print(as_text(pd.DataFrame({"flow": ["iaf"], "F1, top 20%": ["0.94"]}), "md"))
        | flow | F1, top 20% |
        | ---- | ----------- |
        | iaf  | 0.94        |
    """
    if style == "csv":
        return csv_text(frame).rstrip()
    if style == "latex":
        return visible(frame.to_latex(index=False, escape=True, na_rep="").rstrip())
    heads = [str(name) for name in frame.columns]
    rows = [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.to_numpy(object)]
    heads, *rows = ([markdown(cell) for cell in row] for row in [heads, *rows])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    ruled = [heads, ["-" * width for width in widths], *rows]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in ruled)
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)


def _page(title: str, runs: Sequence[FinishedRun], table: pd.DataFrame) -> str:
    """The table, the commands and versions that made the runs, and their settings, as Markdown."""
    parts = [f"# {markdown(title)}", as_text(table, "md")]
    parts.append(
        "Mean ± standard deviation over seeds. ELBO, log evidence and KL are nats per row, over "
        "the test rows that are inliers. Seconds are of one run beside the others of its call; "
        "one scoring pass gives both scores."
    )
    if HEADINGS[DISTINCT[0]] in table:
        parts.append("Distinct rows: of test rows equal in all columns and in kind, the first.")
    commands = sorted({run.metrics["command"] for run in runs if run.metrics["command"]})
    origins = sorted({_origin(run) for run in runs})
    parts += ["## Made by", f"```\n{_fenced(*commands)}\n```", "\n".join(origins)]
    settings = {"seeds": sorted({run.config.seed for run in runs})}
    settings |= settings_of([run.config for run in runs])
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    parts += ["## Settings", f"```yaml\n{_fenced(text)}```"]
    return "\n\n".join(parts) + "\n"


def _fenced(*lines: str) -> str:
    """Lines that no fence around them ends at."""
    return "\n".join(visible(line).replace("```", "` ` `") for line in lines)


def settings_of(configs: Sequence[ExperimentConfig]) -> dict[str, Any]:
    """What these share and what tells their variants apart, each variant with its data sets."""
    variants: dict[str, dict[str, Any]] = {}
    for config in {config.digest: config for config in configs}.values():
        settings = {k: v for k, v in flat_settings(config).items() if k not in ("seed", "dataset")}
        variant = variants.setdefault(repr(settings), {**settings, "dataset": []})
        variant["dataset"].append(config.dataset)
    first, *others = variants.values()
    shared = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    apart = [{k: v for k, v in part.items() if k not in shared} for part in (first, *others)]
    return {"shared": shared, "variants": apart if others else []}


def _origin(run: FinishedRun) -> str:
    known = run.metrics["versions"] | {"threads a run": run.metrics["threads"]}
    return "- " + ", ".join(f"{name} {value}" for name, value in known.items())

"""Tables as text, and the page that a results folder keeps: numbers, what made them, settings."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from pyro_vaeflow.paper import PAPER_SOURCE
from pyro_vaeflow.results import FinishedRun, finished_runs, flat_settings
from pyro_vaeflow.tables import PAPER_HEADING, aggregate, summary


def write_tables(out: Path) -> pd.DataFrame | None:
    """Rebuilds summary.csv and table.md from the finished runs; None if there is none."""
    runs = finished_runs(out)
    if not runs:
        return None
    table = summary(runs)
    table.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    (out / "table.md").write_text(_report(out.resolve().name, runs, aggregate(table)))
    return table


def as_text(frame: pd.DataFrame, style: str) -> str:
    """A frame as ``md``, ``csv`` or ``latex`` text.

    Example:
        >>> print(as_text(pd.DataFrame({"model": ["iaf"], "F1, top 20%": ["0.94"]}), "latex"))
        \\begin{tabular}{ll}
        model & F1, top 20\\% \\\\
        \\hline
        iaf & 0.94 \\\\
        \\end{tabular}
    """
    if style == "csv":
        return frame.to_csv(index=False).rstrip()
    heads = [str(name) for name in frame.columns]
    rows = [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.to_numpy(object)]
    if style == "latex":
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in [heads, *rows]]
        begin = rf"\begin{{tabular}}{{{'l' * len(heads)}}}"
        return "\n".join([begin, lines[0], r"\hline", *lines[1:], r"\end{tabular}"])
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    ruled = [heads, ["-" * width for width in widths], *rows]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in ruled)
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)


def _report(title: str, runs: Sequence[FinishedRun], table: pd.DataFrame) -> str:
    parts = [f"# {title}", as_text(table, "md")]
    parts.append(
        "Mean ± standard deviation over seeds. ELBO, log evidence and KL are nats a row, over the "
        "test rows that are inliers. Seconds are of one run beside the others of its call; one "
        "scoring pass gives both scores."
    )
    if PAPER_HEADING in table:
        parts.append(f"Paper's F1: {PAPER_SOURCE}")
    commands = sorted({run.metrics["command"] for run in runs if run.metrics["command"]})
    made_by = sorted({_origin(run) for run in runs})
    parts += ["## Made by", "\n".join(["```", *commands, "```"]), "\n".join(made_by)]
    flat = {run.config.digest: flat_settings(run.config) for run in runs}
    names = list(dict.fromkeys(name for settings in flat.values() for name in settings))
    apart = [n for n in names if len({repr(s.get(n)) for s in flat.values()}) > 1 and n != "seed"]
    shared = {n: v for n, v in next(iter(flat.values())).items() if n not in [*apart, "seed"]}
    variants = [{n: s[n] for n in apart if n in s} for s in flat.values()] if apart else []
    seeds = sorted({run.config.seed for run in runs})
    settings = {"seeds": seeds, "shared": shared, "variants": variants}
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    parts += ["## Settings", f"```yaml\n{text}```"]
    return "\n\n".join(parts) + "\n"


def _origin(run: FinishedRun) -> str:
    known = run.metrics["versions"] | {"threads a run": run.metrics["threads"]}
    return "- " + ", ".join(f"{name} {value}" for name, value in known.items())


def _escaped(text: str) -> str:
    for plain, special in {"\\": r"\textbackslash ", "_": r"\_", "%": r"\%", "±": r"$\pm$"}.items():
        text = text.replace(plain, special)
    return text

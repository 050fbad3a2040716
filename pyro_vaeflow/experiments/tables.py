"""The numbers of a results folder, from its finished runs alone: per run, over seeds, by class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.paper import paper_f1
from pyro_vaeflow.experiments.results import (
    FinishedRun,
    finished_runs,
    flat_settings,
    identity,
    read_csv,
)
from pyro_vaeflow.validation import ConfigError

IDENTITY = ["dataset", "flow", "num_flows"]
DETECTION = ["f1_top20", "f1_true_ratio", "auroc", "average_precision"]
NATS = ["elbo", "log_evidence", "kl"]
SECONDS = ["train_seconds", "score_seconds"]
HELD_OUT = ["held_out_elbo", "held_out_log_evidence", "held_out_khat_above_0.7"]  # if there is any
DISTINCT = ["auroc_distinct", "average_precision_distinct"]  # if test rows repeat
RUN_GAPS = ["true_log_density", "approximation_gap", "amortization_gap"]  # what gap_study adds
GAPS = {  # if they were measured: column -> its name among a run's gaps
    "approximation_gap": "approximation_gap",
    "approximation_gap_stderr": "approximation_gap_stderr",
    "amortization_gap": "amortization_gap",
    "amortization_gap_stderr": "amortization_gap_stderr",
    "active_units": "active_units",
    "gap_rows": "rows",
    "gap_elbo": "elbo",
    "gap_log_evidence": "log_evidence",
    "gap_khat_above_0.7": "khat_above_0.7",
    "gap_seconds": "seconds",
}
BESIDE_GAPS = ["log_evidence_stderr", "share_khat_above_0.7", "num_parameters", "num_train"]
OPTIONAL = [*DISTINCT, *HELD_OUT, *BESIDE_GAPS, *GAPS, RUN_GAPS[0]]
COLUMNS = [*IDENTITY, "seed", "score", *DETECTION, *NATS, *SECONDS]
PAPER_HEADING = "paper's F1"
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


def summary(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row a run and score, columns `COLUMNS`; detection in [0, 1], nats a row, seconds.

    Where runs of one data set, posterior and depth differ in other settings, these settings
    follow as columns of their own (lists as text), so that no two rows read the same; then
    detection among distinct test rows, where any are repeated, and last what was measured on
    held-out training rows and of the gaps, if they were. What a peer does not have is missing.
    """
    extra = _telling_apart([run.config for run in runs])
    repeated = any(run.metrics["num_distinct"] < run.metrics["num_test"] for run in runs)
    with_gaps = any("gaps" in run.metrics for run in runs)
    optional = [*(DISTINCT if repeated else []), *HELD_OUT]
    optional += [*BESIDE_GAPS, *GAPS] if with_gaps else []
    rows = []
    for run in runs:
        plain = flat_settings(run.config)
        measured = run.metrics.get("gaps", {})
        gaps = {name: measured[key] for name, key in GAPS.items() if key in measured}
        for score, detection in run.metrics["scores"].items():
            known = {**run.metrics, **plain, **detection, **gaps, **identity(run.config)}
            known["score"] = score
            kept = {name: known[name] for name in optional if name in known}
            apart = {name: _cell(plain.get(name)) for name in extra}
            rows.append({name: known.get(name) for name in COLUMNS} | apart | kept)
    return pd.DataFrame(rows, columns=None if rows else COLUMNS)


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds as text, beside the paper's F1 where it has one."""
    keys = [*IDENTITY, *settings_apart(table), "score"]
    rows = []
    # Missing settings are a group of their own; rows keep the summary's order.
    for key, group in table.groupby(keys, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"seeds": len(group)}
        for name, heading in HEADINGS.items():
            if name not in group:
                continue
            digits = 4 if name in [*DETECTION, *DISTINCT] else 3 if name in [*NATS, *GAPS] else 1
            row[heading] = mean_std(group[name], digits)
            if name == "f1_top20":
                row[PAPER_HEADING] = paper_f1(*(row[k] for k in [*IDENTITY, "score"]))
        row |= {h: mean_std(group[h], 3) for h in HELD_OUT if h in group}
        rows.append(row)
    frame = pd.DataFrame(rows)
    # A study with gaps compares posteriors of one model, on fewer rows than the paper's.
    if "approximation_gap" in table or not frame[PAPER_HEADING].any():
        frame = frame.drop(columns=PAPER_HEADING)
    return frame


def settings_apart(table: pd.DataFrame) -> list[str]:
    """The columns of a summary that are settings which tell runs apart."""
    return [str(name) for name in table if name not in [*COLUMNS, *OPTIONAL]]


def by_class(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """The share of each class's test rows that is flagged at the true ratio, means over seeds.

    Recall for classes that are anomalies, false flags for the others. Of runs on data sets with
    more than two classes alone; empty if there is none.
    """
    extra = _telling_apart([run.config for run in runs])
    rows = []
    for run in runs:
        plain = flat_settings(run.config)
        apart = {name: _cell(plain.get(name)) for name in extra}
        anomalous = run.metrics.get("anomalous_classes", [])
        for score, shares in run.metrics.get("flagged_by_class", {}).items():
            for name, share in shares.items():
                known = {"class": name, "is_anomaly": int(name in anomalous)}
                counts = {"rows": run.metrics["classes"][name], "flagged": share}
                rows.append(identity(run.config) | apart | {"score": score} | known | counts)
    if not rows:
        return pd.DataFrame()
    keys = [*IDENTITY, *extra, "score", "class", "is_anomaly"]
    return pd.DataFrame(rows).groupby(keys, sort=False, dropna=False).mean().reset_index()


def read_summary(out: Path) -> pd.DataFrame:
    """The summary of finished runs; without run folders, the summary.csv that they left.

    Either way one row a run and score, also where summary.csv has a row a run (`by_run`).

    Raises:
        ConfigError: the folder has neither.
    """
    if runs := finished_runs(out):
        return summary(runs)
    if (out / "summary.csv").is_file():
        return by_score(read_csv(out / "summary.csv"))
    raise ConfigError(f"{out} holds no finished run (runs/*/metrics.json) and no summary.csv")


def by_run(table: pd.DataFrame) -> pd.DataFrame:
    """A summary with one row a run: columns of detection are there once a score, as auroc_own.

    Example:
        >>> table = pd.DataFrame({"seed": 0, "score": ["a", "b"], "auroc": [0.8, 0.9]})
        >>> by_run(table).to_dict("records")
        [{'seed': 0, 'auroc_a': 0.8, 'auroc_b': 0.9}]
    """
    of_scores = [name for name in [*DETECTION, *DISTINCT] if name in table]
    keys = [str(name) for name in table if name not in [*of_scores, "score"]]
    groups = table.groupby(keys, sort=False, dropna=False).ngroup()
    wide = table.groupby(groups, sort=False)[keys].head(1).set_axis(groups.unique())
    for score, rows in table.groupby("score", sort=False):
        known = rows.set_index(groups[rows.index])[of_scores]
        wide = wide.join(known.add_suffix(f"_{score}"))
    return wide.reset_index(drop=True)


def by_score(wide: pd.DataFrame) -> pd.DataFrame:
    """The inverse of `by_run`: one row a run and score; a table that is so already stays."""
    if "score" in wide:
        return wide
    scores = [str(n).removeprefix("auroc_") for n in wide if str(n).startswith("auroc_")]
    scores = [s for s in scores if not s.startswith("distinct")]
    parts = []
    for score in scores:
        named = {f"{name}_{score}": name for name in [*DETECTION, *DISTINCT]}
        others = [f"{n}_{s}" for s in scores if s != score for n in [*DETECTION, *DISTINCT]]
        part = wide.drop(columns=others, errors="ignore").rename(columns=named)
        parts.append(part.assign(score=score).dropna(subset=["auroc"]))
    long = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    first = [name for name in COLUMNS if name in long]
    return long[[*first, *(name for name in long if name not in first)]]


def _telling_apart(configs: Sequence[ExperimentConfig]) -> list[str]:
    """Settings that differ between configurations of one data set, posterior and depth."""
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    names: dict[str, None] = {}
    for config in configs:
        flat = flat_settings(config)
        first = seen.setdefault(tuple(identity(config).values()), flat)
        both = {**first, **flat}
        apart = [name for name in both if first.get(name) != flat.get(name)]
        names |= {name: None for name in apart if name not in ("seed", "study")}
    return list(names)


def _cell(value: Any) -> Any:
    """A setting as a table holds it: rows are grouped by it, and a list has no hash."""
    return str(value) if isinstance(value, (list, dict)) else value


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

"""The numbers of a results folder, from its finished runs alone: per run, over seeds, by class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_vaeflow.checked import ConfigError
from pyro_vaeflow.config import ExperimentConfig
from pyro_vaeflow.paper import paper_f1
from pyro_vaeflow.results import FinishedRun, finished_runs, flat_settings, identity

IDENTITY = ["dataset", "model", "num_flows"]
DETECTION = ["f1_top20", "f1_true_ratio", "auroc", "average_precision"]
NATS = ["elbo", "log_evidence", "kl"]
SECONDS = ["train_seconds", "score_seconds"]
HELD_OUT = ["held_out_elbo", "held_out_log_evidence", "held_out_khat_above_0.7"]  # if there is any
DISTINCT = ["auroc_distinct", "average_precision_distinct"]  # if test rows repeat
RUN_GAPS = ["true_log_density", "approximation_gap", "amortization_gap"]  # what gap_study adds
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
    "train_seconds": "train s",
    "score_seconds": "score s",
}


def summary(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row a run and score, columns `COLUMNS`; detection in [0, 1], nats a row, seconds.

    Where runs of one data set, posterior and depth differ in other settings, these settings
    follow as columns of their own (lists as text), so that no two rows read the same; then
    detection among distinct test rows, where any are repeated, and last what was measured on
    held-out training rows, if any were. What a peer does not have is missing.
    """
    extra = _telling_apart([run.config for run in runs])
    repeated = any(run.metrics["num_distinct"] < run.metrics["num_test"] for run in runs)
    optional = [*(DISTINCT if repeated else []), *HELD_OUT]
    rows = []
    for run in runs:
        plain = flat_settings(run.config)
        for score, detection in run.metrics["scores"].items():
            known = {**run.metrics, **plain, **detection, **identity(run.config), "score": score}
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
            digits = 4 if name in [*DETECTION, *DISTINCT] else 3 if name in NATS else 1
            row[heading] = mean_std(group[name], digits)
            if name == "f1_top20":
                row[PAPER_HEADING] = paper_f1(*(row[k] for k in [*IDENTITY, "score"]))
        row |= {h: mean_std(group[h], 3) for h in HELD_OUT if h in group}
        rows.append(row)
    frame = pd.DataFrame(rows)
    if not frame[PAPER_HEADING].any():
        frame = frame.drop(columns=PAPER_HEADING)
    return frame


def settings_apart(table: pd.DataFrame) -> list[str]:
    """The columns of a summary that are settings which tell runs apart."""
    return [str(name) for name in table if name not in [*COLUMNS, *DISTINCT, *HELD_OUT, *RUN_GAPS]]


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

    Raises:
        ConfigError: the folder has neither.
    """
    if runs := finished_runs(out):
        return summary(runs)
    if (out / "summary.csv").is_file():
        return pd.read_csv(out / "summary.csv")
    raise ConfigError(f"{out} holds no finished run (runs/*/metrics.json) and no summary.csv")


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

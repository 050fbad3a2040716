"""The numbers of a results folder, from its finished runs alone: per run, and over seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_vaeflow.checked import ConfigError
from pyro_vaeflow.config import ExperimentConfig
from pyro_vaeflow.paper import paper_f1
from pyro_vaeflow.results import FinishedRun, finished_runs, flat_settings

IDENTITY = ["dataset", "model", "num_flows"]
DETECTION = ["f1_top20", "f1_true_ratio", "auroc", "average_precision"]
NATS = ["elbo", "log_evidence", "kl"]
SECONDS = ["train_seconds", "score_seconds"]
HELD_OUT = ["held_out_elbo", "held_out_log_evidence", "held_out_khat_above_0.7"]  # if there is any
COLUMNS = [*IDENTITY, "seed", "score", *DETECTION, *NATS, *SECONDS]
PAPER_HEADING = "paper's F1"
HEADINGS = {
    "f1_top20": "F1, top 20%",
    "f1_true_ratio": "F1, true ratio",
    "auroc": "AUROC",
    "average_precision": "AP",
    "elbo": "ELBO",
    "log_evidence": "log evidence",
    "kl": "KL",
    "train_seconds": "train s",
    "score_seconds": "score s",
}


def summary(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row a run and score, columns `COLUMNS`; detection in [0, 1], nats a row, seconds.

    Where runs of one data set, posterior and depth differ in other settings, these settings
    follow as columns of their own (lists as text), so that no two rows read the same; last, what
    was measured on held-out training rows, if any were.
    """
    extra = _telling_apart([run.config for run in runs])
    rows = []
    for run in runs:
        plain = flat_settings(run.config)
        for score, detection in run.metrics["scores"].items():
            known = {**run.metrics, **plain, **detection, "score": score}
            kept = {name: known[name] for name in HELD_OUT if name in known}
            apart = {name: _cell(plain.get(name)) for name in extra}
            rows.append({name: known[name] for name in COLUMNS} | apart | kept)
    return pd.DataFrame(rows, columns=None if rows else COLUMNS)


def aggregate(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds as text, beside the paper's F1 where it has one."""
    extra = [name for name in table.columns if name not in [*COLUMNS, *HELD_OUT]]
    keys = [*IDENTITY, *extra, "score"]
    rows = []
    # Missing settings are a group of their own; rows keep the summary's order.
    for key, group in table.groupby(keys, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True)) | {"seeds": len(group)}
        for name, heading in HEADINGS.items():
            digits = 4 if name in DETECTION else 3 if name in NATS else 1
            row[heading] = mean_std(group[name], digits)
            if name == "f1_top20":
                row[PAPER_HEADING] = paper_f1(*(row[k] for k in [*IDENTITY, "score"]))
        row |= {h: mean_std(group[h], 3) for h in HELD_OUT if h in group}
        rows.append(row)
    frame = pd.DataFrame(rows)
    if not frame[PAPER_HEADING].any():
        frame = frame.drop(columns=PAPER_HEADING)
    return frame


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
        first = seen.setdefault(tuple(flat[name] for name in IDENTITY), flat)
        both = {**first, **flat}
        apart = [name for name in both if first.get(name) != flat.get(name)]
        names |= {name: None for name in apart if name not in ("seed", "study")}
    return list(names)


def _cell(value: Any) -> Any:
    """A setting as a table holds it: rows are grouped by it, and a list has no hash."""
    return str(value) if isinstance(value, (list, dict)) else value


def mean_std(values: pd.Series, digits: int) -> str:
    """Mean and, of more than one value, standard deviation, as text.

    Example:
        >>> mean_std(pd.Series([1.0, 3.0]), 2), mean_std(pd.Series([1.0]), 2)
        ('2.00 ± 1.41', '1.00')
    """
    spread = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"

"""Reading a results folder: its finished runs, the settings that tell them apart, their numbers."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.programs_file import DEFAULT, content_name
from pyro_vaeflow.inference import saved_folder
from pyro_vaeflow.inference.saved_folder import CheckpointError
from pyro_vaeflow.validation import ConfigError

NAMES = {"diagonal": "diagonal", "planar": "planar {}", "iaf": "IAF {}", "spline": "spline {}"}
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
MAX_ARRAYS, MAX_RATIO = 2**26, 20  # bytes of a file's arrays; more, if the file has a part of it
COLUMNS = [*IDENTITY, "seed", "score", *DETECTION, *NATS, *SECONDS]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's folder, read."""

    folder: Path
    config: ExperimentConfig
    metrics: dict[str, Any]


def finished_runs(out: Path) -> list[FinishedRun]:
    """The finished runs under ``out/runs``: by data set, posterior, depth, size and seed.

    Of two folders of one run, as an older version named it and as it is named now, the latter.
    """
    runs: dict[str, FinishedRun] = {}
    for path in out.glob("runs/[!.]*/metrics.json"):
        config = ExperimentConfig.from_file(path.parent / "config.yaml")
        if config.run_name not in runs or path.parent.name == config.run_name:
            runs[config.run_name] = FinishedRun(path.parent, config, read_json(path))
    return sorted(runs.values(), key=_order)


def read_json(path: Path) -> Any:
    """What a JSON file of a run's folder holds.

    Raises:
        ConfigError: it cannot be read, or is no JSON.
    """
    try:
        return saved_folder.read_json(path)
    except (OSError, CheckpointError) as error:
        raise ConfigError(f"no JSON that can be read: {error}") from error


def read_csv(path: Path) -> pd.DataFrame:
    """The table in a csv file; a column `model`, as version 0.1 wrote it, is `flow`.

    Raises:
        ConfigError: it cannot be read, or is no table.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no csv table that can be read: {error}") from error
    return table if "flow" in table else table.rename(columns={"model": "flow"})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a run's npz file, by name.

    Raises:
        ConfigError: it cannot be read, or holds no arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > max(MAX_ARRAYS, MAX_RATIO * path.stat().st_size):
            raise ValueError(f"its arrays have {size} bytes, far more than the file")
        with np.load(path) as kept:
            return dict(kept)
    except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is no npz file that can be read: {error}") from error


def _order(run: FinishedRun) -> tuple[Any, ...]:
    config = run.config
    index = [*NAMES, config.flow].index(config.flow)
    place = index, config.flow, config.num_flows, config.latent_dim or 0
    return config.dataset, *place, config.digest, config.seed


def identity(config: ExperimentConfig) -> dict[str, Any]:
    """Data set, posterior and depth: what tables call a run first.

    Example:
        >>> identity(ExperimentConfig(flow="iaf", num_flows=5, num_steps=1))
        {'dataset': 'ring', 'flow': 'iaf', 'num_flows': 5}
    """
    return {"dataset": config.dataset, "flow": config.flow, "num_flows": config.num_flows}


def method_name(flow: str, num_flows: int) -> str:
    """What figures and pages call a posterior of some depth.

    Example:
        >>> method_name("iaf", 5), method_name("diagonal", 0)
        ('IAF 5', 'diagonal')
    """
    return NAMES.get(flow, f"{flow} {{}}").format(num_flows)


def flat_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Settings by dotted name, nested ones too; of a file with programs its name and content."""
    flat: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        nested = value.items() if isinstance(value, dict) else ()
        flat |= {f"{name}.{key}": item for key, item in nested} or {name: value}
    if "programs" in flat:
        flat["programs"] = content_name(config.programs)
    return {name: value for name, value in flat.items() if value != {}}


def summary(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per run and score, columns `COLUMNS`; detection in [0, 1], nats per row, seconds.

    Where runs of one data set, posterior and depth differ in other settings, these settings
    follow as columns of their own (lists as text), so that no two rows read the same; then
    detection among distinct test rows, where any are repeated, and last what was measured on
    held-out training rows and of the gaps, if they were.
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

    Either way one row per run and score, also where summary.csv has a row per run (`by_run`).

    Raises:
        ConfigError: the folder has neither.
    """
    if runs := finished_runs(out):
        return summary(runs)
    if (out / "summary.csv").is_file():
        return by_score(read_csv(out / "summary.csv"))
    raise ConfigError(f"{out} holds no finished run (runs/*/metrics.json) and no summary.csv")


def by_run(table: pd.DataFrame) -> pd.DataFrame:
    """A summary with one row per run: columns of detection are there once per score, as auroc_a.

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
    """The inverse of `by_run`: one row per run and score; a table that is so already stays."""
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
    """Settings that differ between configurations of one data set, posterior and depth.

    Programs of one's own are named in any case.
    """
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    names = dict.fromkeys("programs" for config in configs if config.programs != DEFAULT)
    for config in configs:
        flat = flat_settings(config)
        first = seen.setdefault(tuple(identity(config).values()), flat)
        both = {**first, **flat}
        apart = [name for name in both if first.get(name) != flat.get(name)]
        names |= dict.fromkeys(name for name in apart if name not in ("seed", "study"))
    return list(names)


def _cell(value: Any) -> Any:
    """A setting as a table holds it: rows are grouped by it, and a list has no hash."""
    return str(value) if isinstance(value, (list, dict)) else value

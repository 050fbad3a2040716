"""Reading a results folder: its finished runs, the settings that tell them apart, their numbers."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pyro_vaeflow import plain_files
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.own_files import FILES, content_name
from pyro_vaeflow.validation import ConfigError

FLOWS_IN_ORDER = ["diagonal", "full", "coupling", "planar", "iaf", "spline"]  # others follow
IDENTITY = ["dataset", "flow", "num_flows"]
DETECTION = ["f1_top20", "f1_true_ratio", "auroc", "average_precision"]
COLUMNS = [*IDENTITY, "seed", "score", *DETECTION]
COLUMNS += ["elbo", "log_evidence", "kl", "train_seconds", "score_seconds"]
DISTINCT = ["auroc_distinct", "average_precision_distinct"]  # if test rows repeat
HELD_OUT = ["held_out_elbo", "held_out_log_evidence", "held_out_khat_above_0.7"]  # if there is any
# If gaps were measured: what each run has, and what it has under "gaps", there without "gap_".
BESIDE_GAPS = ["log_evidence_stderr", "share_khat_above_0.7", "num_parameters", "num_train"]
GAPS = ["approximation_gap", "approximation_gap_stderr", "amortization_gap"]
GAPS += ["amortization_gap_stderr", "active_units", "gap_rows", "gap_elbo", "gap_log_evidence"]
GAPS += ["gap_khat_above_0.7", "gap_seconds"]
OPTIONAL = [*DISTINCT, *HELD_OUT, *BESIDE_GAPS, *GAPS]
MAX_ARRAYS, MAX_RATIO = 2**26, 20  # bytes of a file's arrays; more, if the file has a part of it


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's folder, read."""

    folder: Path
    config: ExperimentConfig
    metrics: dict[str, Any]


def finished_runs(out: Path) -> list[FinishedRun]:
    """The finished runs under ``out/runs``: by data set, posterior, depth, size and seed.

    Of two folders of one run, as an older version named it and as it is named now, the latter.

    Raises:
        ConfigError: a file is a link out of `out`, or not what a run writes.
    """
    runs: dict[str, FinishedRun] = {}
    for path in out.glob("runs/[!.]*/metrics.json"):
        for file in path.parent.iterdir():
            plain_files.inside(file, out)
        config = ExperimentConfig.from_file(path.parent / "config.yaml")
        if config.run_name not in runs or path.parent.name == config.run_name:
            runs[config.run_name] = FinishedRun(path.parent, config, _metrics(path))
    return sorted(runs.values(), key=_order)


def _metrics(path: Path) -> dict[str, Any]:
    metrics = read_json(path)
    scores = metrics.get("scores") if isinstance(metrics, dict) else None
    of_scores = list(scores.values()) if isinstance(scores, dict) else [None]
    numbers = [metrics.get(name) for name in ("num_distinct", "num_test")] if scores else []
    for part in of_scores:
        numbers += part.values() if isinstance(part, dict) else [part]
    if not all(isinstance(number, int | float) for number in numbers):
        raise ConfigError(f"{path} does not hold what a run measures")
    return metrics


def read_json(path: Path) -> Any:
    """What a JSON file of a run's folder holds."""
    return _read(path, "JSON", lambda: plain_files.read_json(path))


def read_csv(path: Path) -> pd.DataFrame:
    """The table in a csv file; a column `model`, as version 0.1 wrote it, is `flow`."""
    table = _read(path, "csv table", lambda: pd.read_csv(path))
    return table if "flow" in table else table.rename(columns={"model": "flow"})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a run's npz file, by name."""
    size = path.stat().st_size if path.is_file() else 0
    limit = max(MAX_ARRAYS, MAX_RATIO * size)
    return _read(path, "npz file", lambda: plain_files.read_arrays(path, limit))


def _read(path: Path, kind: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; a ConfigError names a file that is damaged, or not there."""
    try:
        return read()
    except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is no {kind} that can be read: {error}") from error


def _order(run: FinishedRun) -> tuple[Any, ...]:
    config = run.config
    index = [*FLOWS_IN_ORDER, config.flow].index(config.flow)
    place = index, config.flow, config.num_flows, config.latent_dim or 0
    return config.dataset, *place, config.digest, config.seed


def method_name(flow: str, num_flows: int) -> str:
    """What figures and pages call a posterior of some depth.

    Example:
        >>> method_name("iaf", 5), method_name("diagonal", 0)
        ('IAF 5', 'diagonal')
    """
    return (
        flow if flow in ("diagonal", "full") else f"{'IAF' if flow == 'iaf' else flow} {num_flows}"
    )


def flat_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Settings by dotted name, nested ones too; of a file with programs its name and content."""
    flat: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        nested = value.items() if isinstance(value, dict) else ()
        flat |= {f"{name}.{key}": item for key, item in nested} or {name: value}
    for key in FILES.keys() & flat.keys():
        flat[key] = content_name(flat[key], key)
    return {name: value for name, value in flat.items() if value != {}}


def summary(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per run and score, columns `COLUMNS`; detection in [0, 1], nats per row, seconds.

    Where runs of one data set, posterior and depth differ in other settings, these settings
    follow as columns of their own (lists as text), so that no two rows read the same; then
    detection among distinct test rows, where any are repeated, and last what was measured on
    held-out training rows and of the gaps, if they were.
    """
    repeated = any(run.metrics["num_distinct"] < run.metrics["num_test"] for run in runs)
    with_gaps = any("gaps" in run.metrics for run in runs)
    optional = [*(DISTINCT if repeated else []), *HELD_OUT]
    optional += [*BESIDE_GAPS, *GAPS] if with_gaps else []
    rows = []
    settings = [flat_settings(run.config) for run in runs]
    for run, flat, apart in zip(runs, settings, _settings_apart(settings), strict=True):
        of_run = {**run.metrics, **{name: flat[name] for name in [*IDENTITY, "seed"]}}
        for name, value in run.metrics.get("gaps", {}).items():
            of_run[name if name in GAPS else f"gap_{name}"] = value
        for score, detection in run.metrics["scores"].items():
            known = of_run | detection | {"score": score}
            measured = {name: known[name] for name in optional if name in known}
            rows.append({name: known.get(name) for name in COLUMNS} | apart | measured)
    return pd.DataFrame(rows, columns=None if rows else COLUMNS)


def settings_apart(table: pd.DataFrame) -> list[str]:
    """The columns of a summary that are settings which tell runs apart."""
    return [str(name) for name in table if name not in [*COLUMNS, *OPTIONAL]]


def read_summary(out: str | Path) -> pd.DataFrame:
    """The `summary` of finished runs; without run folders, the summary.csv that they left.

    Raises:
        ConfigError: the folder has neither.
    """
    out = Path(out)
    if runs := finished_runs(out):
        return summary(runs)
    if (out / "summary.csv").is_file():
        table = read_csv(plain_files.inside(out / "summary.csv", out))
        if "score" in table:
            return table
        raise ConfigError(f"{out}/summary.csv has no column score: of 0.1, it needs its runs")
    raise ConfigError(f"{out} holds no finished run (runs/*/metrics.json) and no summary.csv")


def _settings_apart(flat: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run, the settings that differ between runs of one data set, posterior and depth.

    Programs of one's own are named in any case.
    """
    if not flat:
        return []
    # As text, since a list has no hash; a setting that is null is like one that is not there.
    texts = pd.DataFrame([{k: str(v) for k, v in f.items() if v is not None} for f in flat])
    groups = texts.drop(columns=["seed", "study"]).groupby(IDENTITY)
    is_varied = groups.nunique(dropna=False).gt(1).any()
    names = [name for name in is_varied.index if is_varied[name] or name == "programs"]
    cells = [{name: settings.get(name) for name in names} for settings in flat]
    return [{k: str(v) if isinstance(v, list) else v for k, v in row.items()} for row in cells]

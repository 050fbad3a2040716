"""Reading a results folder: its finished runs, ours before peers, their names and settings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.peers import PEERS
from pyro_vaeflow.validation import ConfigError

NAMES = {
    "diagonal": "diagonal",
    "planar": "planar {}",
    "iaf": "IAF {}",
    "spline": "spline {}",
}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's folder, read."""

    folder: Path
    config: ExperimentConfig
    metrics: dict[str, Any]


def finished_runs(out: Path) -> list[FinishedRun]:
    """The finished runs under ``out/runs``: by data set, posterior, depth, size and seed."""
    found = []
    for path in out.glob("runs/[!.]*/metrics.json"):
        config = ExperimentConfig.from_file(path.parent / "config.yaml")
        found.append(FinishedRun(path.parent, config, read_json(path)))
    return sorted(found, key=_order)


def read_json(path: Path) -> Any:
    """What a JSON file of a run's folder holds.

    Raises:
        ConfigError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON that can be read: {error}") from error


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
        with np.load(path) as kept:
            return dict(kept)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise ConfigError(f"{path} is no npz file that can be read: {error}") from error


def _order(run: FinishedRun) -> tuple[Any, ...]:
    config = run.config
    first = [*PEERS] if config.is_peer else [*NAMES]
    method = identity(config)["flow"]
    place = config.is_peer, [*first, method].index(method), method, config.num_flows
    return config.dataset, *place, config.latent_dim or 0, config.digest, config.seed


def identity(config: ExperimentConfig) -> dict[str, Any]:
    """Data set, posterior (of a peer, its name) and depth: what tables call a run first.

    Example:
        >>> identity(ExperimentConfig(detector="knn1"))
        {'dataset': 'ring', 'flow': 'knn1', 'num_flows': 0}
    """
    method = config.detector if config.is_peer else config.flow
    return {"dataset": config.dataset, "flow": method, "num_flows": config.num_flows}


def method_name(flow: str, num_flows: int) -> str:
    """What figures and pages call a posterior of some depth, or a peer.

    Example:
        >>> method_name("iaf", 5), method_name("knn1", 0)
        ('IAF 5', 'knn1')
    """
    return flow if flow in PEERS else NAMES.get(flow, f"{flow} {{}}").format(num_flows)


def flat_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Settings by dotted name, nested ones too."""
    flat: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        nested = value.items() if isinstance(value, dict) else ()
        flat |= {f"{name}.{key}": item for key, item in nested} or {name: value}
    return {name: value for name, value in flat.items() if value != {}}

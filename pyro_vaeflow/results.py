"""Reading a results folder: its finished runs, in one order, and their settings by name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vaeflow.config import ExperimentConfig

FIRST_MODELS = ["diagonal", "planar", "iaf", "spline"]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's folder, read."""

    folder: Path
    config: ExperimentConfig
    metrics: dict[str, Any]


def finished_runs(out: Path) -> list[FinishedRun]:
    """The finished runs under ``out/runs``: by data set, posterior, depth and seed."""
    found = []
    for path in out.glob("runs/[!.]*/metrics.json"):
        config = ExperimentConfig.from_yaml((path.parent / "config.yaml").read_text())
        found.append(FinishedRun(path.parent, config, json.loads(path.read_text())))
    return sorted(found, key=_order)


def _order(run: FinishedRun) -> tuple[Any, ...]:
    config = run.config
    models = [*FIRST_MODELS, config.model]
    place = models.index(config.model), config.model, config.num_flows
    return config.dataset, *place, config.digest, config.seed


def flat_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Settings by dotted name, nested ones too."""
    flat: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        nested = value.items() if isinstance(value, dict) else ()
        flat |= {f"{name}.{key}": item for key, item in nested} or {name: value}
    return {name: value for name, value in flat.items() if value != {}}

"""The gaps of one run's posteriors on its own test rows, as plain numbers."""

from copy import deepcopy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pyro_vaeflow.experiments.config import ExperimentConfig, GapSettings
from pyro_vaeflow.experiments.tasks import Task
from pyro_vaeflow.inference.active_units import active_units
from pyro_vaeflow.inference.inference_gap import Gaps, inference_gap
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.scoring import KHAT_LIMIT

PARTS = ["log_evidence", "approximation_gap", "amortization_gap", "elbo"]


def held_out_rows(config: ExperimentConfig, task: Task, count: int) -> torch.Tensor:
    """At most `count` distinct test inliers of the run's task, ``(rows, num_features)``.

    No anomaly is among them, as the bound is about the rows that the model is to explain. A row of
    the table may also be one that a model was trained on, where a data set repeats its rows.
    """
    distinct = task.x_test[torch.as_tensor(task.is_anomaly == 0)].unique(dim=0)
    order = np.random.default_rng(config.rows_seed).permutation(len(distinct))
    return distinct[torch.as_tensor(order[:count])]


def measure_gaps(
    model: Program, guide: Program, x: torch.Tensor, settings: GapSettings, seed: int
) -> tuple[Gaps, dict[str, float]]:
    """The gaps of rows `x`; and their means with standard errors over rows, nats, with k-hat.

    ``active_units`` are counted on the same rows. The settings' own number of rows is not read.
    """
    options = {name: value for name, value in asdict(settings).items() if name != "rows"}
    # A prior around encodings has the guide's parameters: its own copy of them must not vary.
    gaps = inference_gap(deepcopy(model), guide, x, seed=seed, **options)
    found: dict[str, Any] = {name: mean(getattr(gaps, name)) for name in PARTS}
    for name in PARTS[:3]:
        found[f"{name}_stderr"] = getattr(gaps, name).double().std().item() / len(x) ** 0.5
    found["active_units"] = active_units(model, guide, x, seed=seed).count
    found["khat_above_0.7"] = mean(gaps.khat > KHAT_LIMIT)
    return gaps, found


def mean(values: torch.Tensor) -> float:
    """The mean in double precision."""
    return values.double().mean().item()

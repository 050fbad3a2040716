"""What a run measures of its trained pair: detection, nats per row, gaps, a map of the plane."""

import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from pyro_vaeflow.experiments.config import ExperimentConfig, GapSettings
from pyro_vaeflow.experiments.tasks import Task
from pyro_vaeflow.inference.active_units import active_units
from pyro_vaeflow.inference.importance import KHAT_LIMIT
from pyro_vaeflow.inference.inference_gap import Gaps, inference_gap
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.scoring import Scores
from pyro_vaeflow.metrics import auroc, average_precision, detection_metrics
from pyro_vaeflow.programs.fitting import score_rows
from pyro_vaeflow.programs.vae import Guide

SCORES = ("reconstruction", "importance")
PARTS = ["log_evidence", "approximation_gap", "amortization_gap", "elbo"]


def detection(task: Task, scores: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """What each anomaly score of the test rows finds among them, and among distinct ones."""
    first = task.is_first
    measured: dict[str, Any] = {
        "num_test": len(task.x_test),
        "num_anomalies": int(task.is_anomaly.sum()),
        "num_features": task.x_train.shape[1],
        "num_distinct": int(first.sum()),
        "scores": {},
    }
    for name, values in scores.items():
        values = np.asarray(values)
        measured["scores"][name] = {
            **detection_metrics(task.is_anomaly, values),
            "auroc_distinct": auroc(task.is_anomaly[first], values[first]),
            "average_precision_distinct": average_precision(task.is_anomaly[first], values[first]),
        }
    return measured


def measure(task: Task, scores: Scores) -> dict[str, Any]:
    """Detection of both scores; ELBO, log evidence and KL, nats per row over test inliers.

    Anomalies are left out of the nats: one row far outside can outweigh all the others, and the
    bound is about the rows that the model is trained to explain.
    """
    inlier = torch.as_tensor(task.is_anomaly == 0)
    kl = scores.expected_log_likelihood - scores.elbo
    nats = {"elbo": scores.elbo, "log_evidence": scores.log_evidence, "kl": kl}
    return {
        **detection(task, {name: getattr(scores, name).cpu() for name in SCORES}),
        **{name: mean(value[inlier]) for name, value in nats.items()},
        "log_evidence_stderr": _stderr(scores.log_evidence[inlier]),
        "median_ess": scores.ess.median().item(),
        "share_khat_above_0.7": _share_above(scores.khat),
    }


def measure_held_out(scores: Scores) -> dict[str, float | None]:
    """Nats per row of training inliers that were kept out, and how many weights are untrusted."""
    return {
        "held_out_elbo": scores.elbo.mean().item(),
        "held_out_log_evidence": scores.log_evidence.mean().item(),
        "held_out_khat_above_0.7": _share_above(scores.khat),
    }


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
    measured: dict[str, Any] = {name: mean(getattr(gaps, name)) for name in PARTS}
    measured |= {f"{name}_stderr": _stderr(getattr(gaps, name)) for name in PARTS[:3]}
    measured["active_units"] = active_units(model, guide, x, seed=seed).count
    measured["khat_above_0.7"] = _share_above(gaps.khat)
    return gaps, measured


def gaps_of_run(
    config: ExperimentConfig, task: Task, model: Program, guide: Program
) -> dict[str, Any]:
    """What keeps a run's posterior from the exact one, on distinct test inliers; nats per row.

    The encoder's hidden layers stay as they are: of one row they make a constant, and the layers
    that read it reach every member of the family without a copy of the encoder for each row.
    """
    started = time.perf_counter()
    x = held_out_rows(config, task, config.gaps.rows)
    fixed = guide.encoder if isinstance(guide, Guide) else torch.nn.Module()
    fixed.requires_grad_(False)
    measured = measure_gaps(model, guide, x, config.gaps, config.seed)[1]
    fixed.requires_grad_(True)
    return {"rows": len(x), **measured, "seconds": time.perf_counter() - started}


def density_map(
    config: ExperimentConfig, model: Program, guide: Program, task: Task
) -> dict[str, np.ndarray]:
    """Both scores on a square grid around the training rows, for figures of two-column data."""
    if config.map_size == 0 or task.columns is not None or task.x_train.shape[1] != 2:
        return {}
    reach = 1.5 * task.x_train.abs().max()
    axis = torch.linspace(-reach, reach, config.map_size)
    grid = torch.cartesian_prod(axis, axis)
    scores = score_rows(config, model, guide, grid.to(task.x_test.device))
    maps = {s: getattr(scores, s).cpu().reshape(len(axis), -1).T.numpy() for s in SCORES}
    return {"axis": axis.numpy(), **maps}


def mean(values: torch.Tensor) -> float:
    """The mean in double precision."""
    return values.double().mean().item()


def _share_above(khat: torch.Tensor) -> float | None:
    """The share of rows whose k-hat is above the limit; None where too few draws have one."""
    return None if khat.isnan().all() else mean(khat > KHAT_LIMIT)


def _stderr(values: torch.Tensor) -> float:
    return values.double().std().item() / max(1, len(values)) ** 0.5

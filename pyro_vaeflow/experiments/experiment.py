"""One run: load, encode, build, train, score, measure. A run is one config with its seed."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.detection import detection
from pyro_vaeflow.experiments.measured_gaps import held_out_rows, measure_gaps
from pyro_vaeflow.experiments.peers import PEERS
from pyro_vaeflow.experiments.tasks import Task, load_task
from pyro_vaeflow.inference.devices import Device, check_device, move
from pyro_vaeflow.inference.interrupt import InterruptedWarning
from pyro_vaeflow.inference.rounds import KHAT_LIMIT
from pyro_vaeflow.inference.row_scores import Scores
from pyro_vaeflow.inference.state import state_of
from pyro_vaeflow.inference.training import History
from pyro_vaeflow.programs.fitting import build, check_registered, fit, score_rows
from pyro_vaeflow.programs.vae import Guide, Model
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.tables.distinct_rows import training_rows
from pyro_vaeflow.validation import ConfigError

SCORES = ("reconstruction", "importance")
OWN = "own"  # the one score of a peer


@dataclass(frozen=True)
class Result:
    """What one run found: `metrics` are plain values, `arrays` what scores.npz holds.

    A peer has no history and no parameters.
    """

    metrics: dict[str, Any]
    history: pd.DataFrame | None
    arrays: dict[str, np.ndarray]
    density_map: dict[str, np.ndarray]
    parameters: dict[str, torch.Tensor]
    columns: Sequence[Column] | None = None


def run(
    config: ExperimentConfig,
    progress: bool = False,
    checkpoint: Path | None = None,
    device: Device = "cpu",
) -> Result:
    """Trains on the inliers of the training rows and scores the test rows, two scores in one pass.

    Where the configuration names a peer, that is fitted to the same rows and scores the same rows.

    Args:
        progress: whether training and scoring show bars.
        checkpoint: a folder from which training goes on, if a killed process has left it there.
        device: where torch trains and scores, ``cuda`` say; peers stay on the processor.

    Raises:
        ConfigError: a name that is not registered; the message names those that are. Or the
            held-out rows leave none to train on, or this machine lacks the device.
        NonFiniteError: training met a loss or gradient that is not finite.
        KeyboardInterrupt: at Ctrl-C; in training after the step at hand.
    """
    check_registered(config)
    device = check_device(device)
    task = load_task(config)
    if config.is_peer:
        return _run_peer(config, task)
    if config.held_out_rows >= len(task.x_train):
        raise ConfigError(
            f"held_out_rows={config.held_out_rows} leaves none of {len(task.x_train)} training rows"
        )
    x_train, weights = training_rows(task.x_train, config.count_power)
    held_out, x_train = x_train.tensor_split([config.held_out_rows])
    if weights is not None:
        weights = weights[config.held_out_rows :]
    model, guide = build(config, task.num_features, x_train)
    move(model, guide, device)
    x_train, held_out = x_train.to(device), held_out.to(device)
    task = replace(task, x_test=task.x_test.to(device))
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterruptedWarning)  # the command line says it
        history = fit(config, model, guide, x_train, weights, progress, checkpoint)
    if history.interrupted:
        raise KeyboardInterrupt
    trained = time.perf_counter()
    scores = score_rows(config, model, guide, task.x_test, progress)
    scored = time.perf_counter()
    metrics = {"num_train": len(x_train), **measure(task, scores)}
    metrics |= {"train_seconds": trained - started, "score_seconds": scored - trained}
    metrics["train_seconds"] += _seconds_before(history)
    if config.held_out_rows:
        metrics |= _held_out(score_rows(config, model, guide, held_out, progress))
    if config.gaps.rows:
        metrics |= _gaps(config, task, model, guide)
    metrics["num_parameters"] = sum(p.numel() for m in (model, guide) for p in m.parameters())
    return Result(
        metrics=metrics,
        history=history.frame,
        arrays={"is_anomaly": task.is_anomaly, **_arrays(scores)},
        density_map=_density_map(config, model, guide, task),
        parameters={name: value.cpu() for name, value in state_of(model, guide).items()},
        columns=task.columns,
    )


def _run_peer(config: ExperimentConfig, task: Task) -> Result:
    """The same measurements of a peer, which has one score, no nats and no parameters to keep."""
    started = time.perf_counter()
    peer = PEERS[config.detector](config.seed, **config.detector_options)
    peer.fit(task.x_train.numpy())
    trained = time.perf_counter()
    own = np.asarray(peer.anomaly_score(task.x_test.numpy()))
    seconds = {"train_seconds": trained - started, "score_seconds": time.perf_counter() - trained}
    return Result(
        metrics={"num_train": peer.num_train_, **detection(task, {OWN: own}), **seconds},
        history=None,
        arrays={"is_anomaly": task.is_anomaly, OWN: own.astype(np.float32)},
        density_map={},
        parameters={},
    )


def measure(task: Task, scores: Scores) -> dict[str, Any]:
    """Detection metrics of both scores; ELBO, log evidence and KL, nats a row over test inliers.

    Anomalies are left out of the nats: one row far outside can outweigh all the others, and the
    bound is about the rows that the model is trained to explain.
    """
    inlier = torch.as_tensor(task.is_anomaly == 0)
    kl = scores.expected_log_likelihood - scores.elbo
    nats = {"elbo": scores.elbo, "log_evidence": scores.log_evidence, "kl": kl}
    return {
        **detection(task, {s: getattr(scores, s).cpu() for s in SCORES}),
        **{name: value[inlier].double().mean().item() for name, value in nats.items()},
        "log_evidence_stderr": scores.log_evidence[inlier].double().std().item()
        / max(1, int(inlier.sum())) ** 0.5,
        "median_ess": scores.ess.median().item(),
        "share_khat_above_0.7": _distrusted(scores),
    }


def _seconds_before(history: History) -> float:
    """What training had taken before this process took it up."""
    seconds = history.frame["seconds"]
    return float(seconds.iloc[history.resumed_at - 1]) if history.resumed_at else 0.0


def _held_out(scores: Scores) -> dict[str, float]:
    """Nats a row of training inliers that were kept out, and how many weights cannot be trusted."""
    return {
        "held_out_elbo": scores.elbo.mean().item(),
        "held_out_log_evidence": scores.log_evidence.mean().item(),
        "held_out_khat_above_0.7": _distrusted(scores),
    }


def _gaps(config: ExperimentConfig, task: Task, model: Model, guide: Guide) -> dict[str, Any]:
    """What keeps the posterior from the exact one, on distinct test inliers; nats a row.

    The encoder's hidden layers stay as they are: of one row they make a constant, and the layers
    that read it reach every member of the family without a copy of the encoder for each row.
    """
    started = time.perf_counter()
    x = held_out_rows(config, task, config.gaps.rows)
    guide.encoder.requires_grad_(False)
    found = measure_gaps(model, guide, x, config.gaps, config.seed)[1]
    guide.encoder.requires_grad_(True)
    seconds = time.perf_counter() - started
    return {"gaps": {"rows": len(x), **found, "seconds": seconds}}


def _distrusted(scores: Scores) -> float:
    """The share of rows whose weights cannot be trusted; the metrics' names spell the limit."""
    return (scores.khat > KHAT_LIMIT).double().mean().item()


def _arrays(scores: Scores) -> dict[str, np.ndarray]:
    frame = scores.to_frame()
    return {str(name): frame[name].to_numpy(dtype=np.float32) for name in frame}


def _density_map(
    config: ExperimentConfig, model: Model, guide: Guide, task: Task
) -> dict[str, np.ndarray]:
    """Both scores on a square grid around the training rows, for figures of two-column data."""
    if config.map_size == 0 or task.columns is not None or task.x_train.shape[1] != 2:
        return {}
    reach = 1.5 * task.x_train.abs().max()
    axis = torch.linspace(-reach, reach, config.map_size)
    grid = torch.cartesian_prod(axis, axis)
    scores = score_rows(config, model, guide, grid.to(task.x_test.device), progress=False)
    maps = {s: getattr(scores, s).cpu().reshape(len(axis), -1).T.numpy() for s in SCORES}
    return {"axis": axis.numpy(), **maps}

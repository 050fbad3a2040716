"""One run: load, encode, build, train, score, measure. A run is one configuration with its seed."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.experiments import own_files
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.measurements import (
    density_map,
    gaps_of_run,
    measure,
    measure_held_out,
)
from pyro_vaeflow.experiments.tasks import check_task, load_task
from pyro_vaeflow.inference.callbacks import InterruptedWarning
from pyro_vaeflow.inference.parameters import (
    Device,
    check_device,
    move,
    named_parameters,
    param_scope,
)
from pyro_vaeflow.inference.saved_folder import state_of
from pyro_vaeflow.programs.fitting import PROGRAMS, Make, build, check_pair, fit, score_rows, vae
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.tables.distinct_rows import training_rows
from pyro_vaeflow.validation import ConfigError, check_names


@dataclass(frozen=True)
class Result:
    """What one run found: `metrics` are plain values, `arrays` what scores.npz holds."""

    metrics: dict[str, Any]
    history: pd.DataFrame
    arrays: dict[str, np.ndarray]
    density_map: dict[str, np.ndarray]
    parameters: dict[str, torch.Tensor]
    columns: Sequence[Column] | None = None


def maker(config: ExperimentConfig) -> Make:
    """The function that makes the configuration's pair; runs the file that ``programs`` names."""
    if own_files.is_file(config.programs):
        return own_files.load(config.programs)
    check_names([config.programs], [*PROGRAMS, "FILE.py:FUNCTION"], "programs")
    return PROGRAMS[config.programs]


def check_registered(config: ExperimentConfig) -> None:
    """Refuses names and options that no registry knows, before anything is loaded."""
    make = maker(config)  # first: a file with programs may register a data set
    check_task(config)
    if (config.preprocessing == "mixed") != (config.likelihood == "mixed"):
        raise ConfigError(
            "preprocessing and likelihood must both be mixed or neither; got "
            f"preprocessing={config.preprocessing} and likelihood={config.likelihood}"
        )
    if make is vae:
        check_pair(config)


def run(
    config: ExperimentConfig,
    progress: bool = False,
    checkpoint: Path | None = None,
    device: Device = "cpu",
) -> Result:
    """Trains on the inliers of the training rows and scores the test rows, two scores in one pass.

    Args:
        progress: whether training and scoring show bars.
        checkpoint: a folder from which training resumes, if a killed process has left it there.
        device: where torch trains and scores, ``cuda`` say.

    Raises:
        KeyboardInterrupt: at Ctrl-C; in training after the step at hand.
    """
    check_registered(config)
    device = check_device(device)
    task = load_task(config)
    if config.held_out_rows >= len(task.x_train):
        raise ConfigError(
            f"held_out_rows={config.held_out_rows} leaves none of {len(task.x_train)} training rows"
        )
    x_train, weights = training_rows(task.x_train, config.count_power)
    held_out, x_train = x_train.tensor_split([config.held_out_rows])
    if weights is not None:
        weights = weights[config.held_out_rows :]
    model, guide = build(config, task.num_features, x_train, maker(config))
    move(model, guide, device)
    x_train, held_out = x_train.to(device), held_out.to(device)
    task = replace(task, x_test=task.x_test.to(device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterruptedWarning)  # the command line says it
        history = fit(config, model, guide, x_train, weights, progress, checkpoint)
    if history.interrupted:
        raise KeyboardInterrupt
    started = time.perf_counter()
    scores = score_rows(config, model, guide, task.x_test, progress)
    scored = time.perf_counter()
    metrics = {"num_train": len(x_train), **measure(task, scores)}
    metrics["train_seconds"] = float(history.frame["seconds"].iloc[-1])  # of steps alone
    metrics["score_seconds"] = scored - started
    if config.held_out_rows:
        metrics |= measure_held_out(score_rows(config, model, guide, held_out, progress))
    if config.gaps.rows:
        metrics["gaps"] = gaps_of_run(config, task, model, guide)
    with param_scope(model, guide):
        parameters = named_parameters(model, guide).values()
    metrics["num_parameters"] = sum(parameter.numel() for parameter in parameters)
    arrays = {str(n): v.to_numpy(dtype=np.float32) for n, v in scores.to_frame().items()}
    return Result(
        metrics=metrics,
        history=history.frame,
        arrays={"is_anomaly": task.is_anomaly, **arrays},
        density_map=density_map(config, model, guide, task),
        parameters={name: value.cpu() for name, value in state_of(model, guide).items()},
        columns=task.columns,
    )

"""The folder of one run: written in one move, so that a killed run never looks finished."""

import json
import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.experiment import Result, maker
from pyro_vaeflow.experiments.own_files import is_file
from pyro_vaeflow.experiments.results import read_json
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.saved_folder import (
    CheckpointError,
    make_parameters,
    package_versions,
    restore,
)
from pyro_vaeflow.locks import hold_lock
from pyro_vaeflow.programs.fitting import Make, build, check_build, vae
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.validation import ConfigError

FILES = ("config.yaml", "metrics.json", "scores.npz", "history.csv", "parameters.safetensors")


def write(result: Result, config: ExperimentConfig, folder: Path, command: str = "") -> None:
    """Writes `FILES` of the run, and columns.json and map.npz where there are any.

    They are written beside `folder` and appear there in one move.

    Args:
        command: kept in metrics.json with the versions, to say what made the run.
    """
    partial = folder.with_name(f".{folder.name}.{uuid4().hex}.partial")
    origin = {"command": command, "versions": package_versions()}
    metrics = result.metrics | origin | {"threads": torch.get_num_threads()}
    try:
        partial.mkdir(parents=True)
        (partial / "config.yaml").write_text(config.to_yaml())
        (partial / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        result.history.to_csv(partial / "history.csv", index=False, float_format="%.6g")
        np.savez_compressed(partial / "scores.npz", **result.arrays)  # type: ignore[arg-type]
        save_file(result.parameters, partial / "parameters.safetensors")
        if result.columns is not None:
            listed = [column.to_dict() for column in result.columns]
            (partial / "columns.json").write_text(json.dumps(listed) + "\n")
        if result.density_map:
            np.savez_compressed(partial / "map.npz", **result.density_map)  # type: ignore[arg-type]
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process finished the same run first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_finished(folder: Path, config: ExperimentConfig) -> bool:
    """Whether `folder` holds a complete run of just this configuration.

    One that is incomplete or of another is refused: a run never overwrites what it did not make.
    """
    if not folder.exists():
        return False
    files = [*FILES, *(["columns.json"] if config.preprocessing == "mixed" else [])]
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}; remove it and run again")
    found = ExperimentConfig.from_file(folder / "config.yaml")
    if found.run_name != config.run_name:
        raise ConfigError(
            f"{folder} holds the run {found.run_name}; remove it or choose another --out"
        )
    return True


def load_programs(
    folder: Path, make: Make | None = None
) -> tuple[ExperimentConfig, Program, Program]:
    """The configuration, model and guide of a finished run, as training left them.

    Args:
        make: of a run with programs from a file, the function that makes the pair: a folder's own
            code is never run. It is called with two rows of zeros.

    Raises:
        ConfigError: the run has programs from a file and `make` is not given; or they are not
            registered here.
        CheckpointError: the parameters cannot be read or do not fit the configuration.
    """
    config = ExperimentConfig.from_file(folder / "config.yaml")
    if make is None and is_file(config.programs):
        raise ConfigError(
            f"{folder} is a run of {config.programs}, whose code is not run to open a folder; look "
            "at it, import its function and pass it: load_programs(folder, make)"
        )
    make_pair = maker(config) if make is None else make
    path = folder / "parameters.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    try:
        size = num_features = read_json(folder / "metrics.json")["num_features"]
        if make is None and size > max(value.numel() for value in tensors.values()):
            raise ValueError(f"num_features={size!r} is more than any tensor has values")
        if config.likelihood == "mixed":
            listed = read_json(folder / "columns.json")
            num_features = [Column.from_dict(values) for values in listed]
        rows = tensors.get("model.prior.rows") if make is None else torch.zeros(2, size)
        if make_pair is vae:
            check_build(config, num_features, rows, tensors, torch.float32)
        model, guide = build(config, num_features, rows, make_pair)
        if any(name.startswith("param.") for name in tensors):
            make_parameters(model, guide, torch.zeros(2, size))
        restore(model, guide, tensors)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} does not hold a run's programs: {error}") from error
    return config, model, guide


def lock_of(folder: Path) -> Path:
    """The file whose holder may make the run of `folder`: see `hold_lock`."""
    return folder.with_name(f".{folder.name}.lock")


def sweep(runs: Path) -> None:
    """Removes what killed processes left; what a living one has locked stays."""
    for path in runs.glob(".*.partial"):
        name = path.name[1:].rsplit(".", 2)[0]
        with hold_lock(lock_of(runs / name)) as mine:
            if mine:
                shutil.rmtree(path, ignore_errors=True)
    for path in runs.glob(".*.lock"):
        with hold_lock(path):
            pass

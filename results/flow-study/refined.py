"""Refined evidence: cells of the study trained anew, and test rows scored by draws and refined."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.experiments.config import ExperimentConfig, GapSettings
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.results import FinishedRun, finished_runs, read_arrays
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.study import load_study
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.programs.fitting import score_rows
from results.ring.maps import quadrature

SETS = ("ring", "kddcup99", "adbench:cardio", "adbench:annthyroid")
POSTERIORS = [("diagonal", 0), ("planar", 20), ("iaf", 20)]
# Rows of each kind, refined in a round and by quadrature alone; latents along a square's side.
BUDGET: dict[str, Any] = {"rounds": 2, "rows": 10, "many": 200, "latents": (400, 400, 400, 2400)}
QUICK: dict[str, Any] = {"rounds": 1, "rows": 2, "many": 4, "latents": (8, 8, 8, 40)}
KEYS = ["dataset", "seed", "latent_dim", "flow", "num_flows"]


def cells() -> list[ExperimentConfig]:
    """The preset's runs with 8 latents on `SETS`, and with 2 on the ring; their gaps are left out.

    Example:
        >>> len(cells())
        45
    """
    return [
        replace(config, gaps=GapSettings())
        for config in load_study("flow-study").expand()
        if config.dataset in SETS
        and (config.flow, config.num_flows) in POSTERIORS
        and config.likelihood != "bernoulli"
        and config.annealing.kind not in ("cyclical", "capacity")
        and config.latent_dim in ((2, 8) if config.dataset == "ring" else (8,))
    ]


def train_cells(folder: Path) -> None:
    """Makes the runs of `cells` that FOLDER/refined lacks."""
    run_all(cells(), folder / "refined", command="python -m results.flow-study.make --fit")


def write_rows(folder: Path, trained: Path, budget: Mapping[str, Any]) -> None:
    """Writes quadrature.csv and refined.csv: rows of the runs in `trained`, in rounds over these.

    A killed call goes on with what the runs' folders lack.
    """
    runs = [r for r in finished_runs(trained) if (r.config.flow, r.config.num_flows) in POSTERIORS]
    runs.sort(key=lambda run: SETS.index(run.config.dataset))
    write_quadrature(folder, [run for run in runs if _has_quadrature(run.config)], budget)
    tables = []
    for number in range(budget["rounds"]):
        for run in runs:
            path = run.folder / f"refined-{number}.csv"
            if not path.is_file():
                _refined(run, number, budget).to_csv(path, index=False, float_format="%.6g")
            tables.append(pd.read_csv(path))
        # What is there after each round is a table of all runs.
        table = pd.concat(tables).sort_values([*KEYS, "is_anomaly"], kind="stable")
        table.to_csv(folder / "refined.csv", index=False)


@torch.no_grad()
def write_quadrature(folder: Path, runs: list[FinishedRun], budget: Mapping[str, Any]) -> None:
    """Writes quadrature.csv: many rows of the ring's runs with two latents."""
    for run in runs:
        path = run.folder / "quadrature.csv"
        if not path.is_file():
            table, model, _, x = _chosen(run, 0, budget["many"])
            table["quadrature"] = quadrature(model.eval(), x, budget["latents"]).numpy()
            table.to_csv(path, index=False, float_format="%.6g")
    tables = [pd.read_csv(run.folder / "quadrature.csv") for run in runs]
    pd.concat(tables).to_csv(folder / "quadrature.csv", index=False)


def _has_quadrature(config: ExperimentConfig) -> bool:
    return config.dataset == "ring" and config.latent_dim == 2


@torch.no_grad()
def _chosen(
    run: FinishedRun, first: int, count: int
) -> tuple[pd.DataFrame, Any, Any, torch.Tensor]:
    """Distinct test rows of both kinds with the scores of the run; model, guide and the rows."""
    config, model, guide = load_programs(run.folder)
    task = load_task(config)
    drawn, some = read_arrays(run.folder / "scores.npz"), []
    order = np.random.default_rng(config.rows_seed).permutation(len(task.x_test))
    for kind in (0, 1):
        of_kind = order[task.is_first[order] & (task.is_anomaly[order] == kind)]
        some.append(of_kind[first : first + count])
    rows = np.concatenate(some)
    table = pd.DataFrame({name: getattr(config, name) for name in KEYS}, index=range(len(rows)))
    table["row"], table["is_anomaly"], table["elbo"] = (
        rows,
        task.is_anomaly[rows],
        drawn["elbo"][rows],
    )
    for name in ("log_evidence", "khat"):
        table[f"{name}_drawn"] = drawn[name][rows]
    return table, model, guide, task.x_test[rows]


@torch.no_grad()
def _refined(run: FinishedRun, number: int, budget: Mapping[str, Any]) -> pd.DataFrame:
    table, model, guide, x = _chosen(run, number * budget["rows"], budget["rows"])
    refined = score_rows(run.config, model, guide, x, refine="all")
    for name in ("log_evidence", "stderr", "khat"):
        table[f"{name}_refined"] = getattr(refined, name).numpy()
    if _has_quadrature(run.config):
        table["quadrature"] = quadrature(model.eval(), x, budget["latents"]).numpy()
    return table

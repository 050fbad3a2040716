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
from pyro_vaeflow.metrics import auroc
from pyro_vaeflow.programs.fitting import score_rows
from results.ring.maps import quadrature

SETS = ("ring", "kddcup99", "adbench:cardio", "adbench:annthyroid")
POSTERIORS = [("diagonal", 0), ("planar", 20), ("iaf", 20)]
# Rows of each kind a round; latents along a side of each square of the quadrature.
BUDGET: dict[str, Any] = {"rounds": 6, "rows": 10, "latents": (400, 400, 400, 2400)}
QUICK: dict[str, Any] = {"rounds": 1, "rows": 2, "latents": (8, 8, 8, 40)}
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
    """Writes refined.csv: rows of the runs in `trained`, in rounds over these.

    A killed call goes on with what the runs' folders lack.
    """
    runs = [r for r in finished_runs(trained) if (r.config.flow, r.config.num_flows) in POSTERIORS]
    runs.sort(key=lambda run: SETS.index(run.config.dataset))
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
def _refined(run: FinishedRun, number: int, budget: Mapping[str, Any]) -> pd.DataFrame:
    config, model, guide = load_programs(run.folder)
    task = load_task(config)
    drawn, some = read_arrays(run.folder / "scores.npz"), []
    order = np.random.default_rng(config.rows_seed).permutation(len(task.x_test))
    first = number * budget["rows"]
    for kind in (0, 1):
        of_kind = order[task.is_first[order] & (task.is_anomaly[order] == kind)]
        some.append(of_kind[first : first + budget["rows"]])
    rows = np.concatenate(some)
    x = task.x_test[rows]
    refined = score_rows(config, model, guide, x, refine="all")
    table = pd.DataFrame({name: getattr(config, name) for name in KEYS}, index=range(len(rows)))
    table["row"], table["is_anomaly"] = rows, task.is_anomaly[rows]
    for name in ("elbo", "log_evidence", "khat"):
        table[f"{name}_drawn" if name != "elbo" else name] = drawn[name][rows]
    for name in ("log_evidence", "stderr", "khat"):
        table[f"{name}_refined"] = getattr(refined, name).numpy()
    if config.dataset == "ring" and config.latent_dim == 2:
        table["quadrature"] = quadrature(model.eval(), x, budget["latents"]).numpy()
    table["auroc_all_rows"] = auroc(task.is_anomaly, -drawn["log_evidence"])
    return table

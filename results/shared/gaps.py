"""Gaps of finished runs: what keeps each posterior from the exact one, a row a run."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from pyro_vaeflow.experiments.config import GapSettings
from pyro_vaeflow.experiments.measurements import PARTS, held_out_rows, measure_gaps
from pyro_vaeflow.experiments.results import IDENTITY, FinishedRun, finished_runs, method_name
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.tables import mean_std
from pyro_vaeflow.experiments.tasks import Task, load_task
from pyro_vaeflow.inference.inference_gap import Gaps
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.saved_folder import write_whole
from pyro_vaeflow.validation import ConfigError
from results.shared.pages import markdown, write_page

# What one study alone knows of a run: (model, guide, task, rows, their gaps, seed) -> columns.
Extra = Callable[[Program, Program, Task, torch.Tensor, Gaps, int], dict[str, float]]

QUICK = GapSettings(rows=8, num_steps=2, draws_per_step=4, num_samples=20)
HEADINGS = {
    "true_log_density": "true log p(x)",
    "decoder_gap": "decoder gap",
    "prior_gap": "prior gap",
    "log_evidence": "log evidence",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
    "elbo": "ELBO",
    "active_units": "active units",
    "khat_above_0.7": "k-hat > 0.7",
    "seconds": "seconds",
}
DIGITS = {"active_units": 1, "seconds": 0}  # 3 of the others


def write_gaps(folder: Path, settings: GapSettings, extra: Extra | None = None) -> pd.DataFrame:
    """Measures each finished run's gaps; writes gaps.csv, a row a run, also returned, and gaps.md.

    What is measured stays in the run's folder, so a killed call goes on where it was.

    Raises:
        ConfigError: there is no finished run.
    """
    runs = finished_runs(folder)
    if not runs:
        raise ConfigError(f"{folder} holds no finished run (runs/*/metrics.json)")
    rows = []
    for run in tqdm(runs, desc="gaps", unit="run"):
        path = run.folder / file_name(settings)
        if not path.is_file():
            write_whole(path, json.dumps(measure_run(run, settings, extra)).encode())
        rows.append(json.loads(path.read_text()))
    table = pd.DataFrame(rows)
    table.to_csv(folder / "gaps.csv", index=False, float_format="%.6g")
    write_gaps_page(folder, table, settings)
    return table


def measure_run(
    run: FinishedRun, settings: GapSettings, extra: Extra | None = None
) -> dict[str, Any]:
    """One finished run's gaps as means over rows, nats, and its active units on the same rows."""
    started = time.perf_counter()
    task = load_task(run.config)
    x = held_out_rows(run.config, task, settings.rows)
    config, model, guide = load_programs(run.folder)
    gaps, measured = measure_gaps(model, guide, x, settings, config.seed)
    row: dict[str, Any] = {name: getattr(config, name) for name in [*IDENTITY, "seed"]}
    row["rows"] = len(x)
    if extra is not None:
        row |= extra(model, guide, task, x, gaps, config.seed)
    return row | measured | {"seconds": time.perf_counter() - started}


def file_name(settings: GapSettings) -> str:
    """The file, in a run's folder, of what is measured with these settings.

    Example:
        >>> file_name(GapSettings(rows=100, num_steps=50))
        'gaps-100-50-32-1000.json'
    """
    return "gaps-" + "-".join(str(value) for value in asdict(settings).values()) + ".json"


def write_gaps_page(folder: Path, table: pd.DataFrame, settings: GapSettings) -> None:
    """Writes gaps.md from gaps.csv: means over seeds; of the ring, every seed as well."""
    lines = []
    for _, group in table.groupby(IDENTITY, sort=False):
        flow, num_flows = group["flow"].iloc[0], group["num_flows"].iloc[0]
        line = {"posterior": method_name(flow, num_flows), "seeds": len(group)}
        for name in [name for name in HEADINGS if name in group]:
            line[HEADINGS[name]] = mean_std(group[name], DIGITS.get(name, 3))
        lines.append(line)
    name = folder.resolve().name
    blocks = [
        f"# {name}: what keeps each posterior from the exact one",
        markdown(pd.DataFrame(lines)),
        f"Made by `python -m results.{name}.make` from the finished runs of seeds "
        f"{sorted(set(table['seed']))}: nats a row, means over {table['rows'].max():,} distinct "
        "test rows of inliers; ± is over seeds. Rows that the test set repeats count once, so "
        "rare rows weigh more than in table.md.",
        f"Each row's own q: {settings.num_steps} steps of {settings.draws_per_step} draws; "
        f"{settings.num_samples:,} draws a row behind evidence and bounds. Log evidence = ELBO + "
        "approximation gap + amortization gap. The approximation gap is an upper bound. The "
        "standard errors over rows are in gaps.csv.",
    ]
    if "prior_gap" in table:
        first = ["flow", "num_flows", "seed", "true_log_density", "decoder_gap", "prior_gap"]
        blocks += [
            "True log p(x) = log evidence + prior gap + decoder gap. The prior gap is what the "
            "evidence gains where the mean of q over the training rows is the prior; what is then "
            "still missing is the decoder's: its Gaussian and its network.",
            "## Every seed",
            markdown(table[[*first, *PARTS]].round(4)),
        ]
    write_page(folder / "gaps.md", *blocks)

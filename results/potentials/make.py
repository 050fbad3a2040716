"""How well each posterior fits the four potentials; with ``--fit`` fits what is not fitted yet.

One run is a potential, a posterior and a seed. A finished run is a JSON file in ``runs/``, so a
killed call goes on with the next.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from pyro_vaeflow.experiments.results import method_name
from pyro_vaeflow.experiments.tables import mean_std
from pyro_vaeflow.inference.saved_folder import write_whole
from results.potentials.densities import plot_densities
from results.potentials.energies import POTENTIALS, log_normalizer
from results.potentials.runs import CLIP_NORM, EDGES, FALL, WARMUP, PotentialRun, fit_potential
from results.shared.pages import markdown, parse, parser, run_script, write_page

POSTERIORS = (("planar", 2), ("planar", 8), ("planar", 32), ("spline", 4), ("iaf", 8), ("iaf", 32))
# A planar step is the cheapest and learns the least. The wall lets z1 go past 4, so must a spline.
SETTINGS: dict[str, dict[str, Any]] = {
    "planar": {"num_steps": 6000, "batch_size": 256, "learning_rate": 2e-2},
    "spline": {
        "num_steps": 3000,
        "batch_size": 256,
        "learning_rate": 1e-2,
        "flow_options": {"hidden_dim": 128, "count_bins": 16, "bound": 6.0},
    },
    "iaf": {
        "num_steps": 5000,
        "batch_size": 128,
        "learning_rate": 1e-2,
        "flow_options": {"hidden_dim": 16},
    },
}
SEEDS = (0, 1, 2, 3, 4)
QUICK = {"num_steps": 5, "num_samples": 500}


def runs_of(seeds: Sequence[int], **settings: Any) -> list[PotentialRun]:
    """The study's runs; `settings` in place of those of `SETTINGS`."""
    return [
        PotentialRun(potential, flow, depth, seed, **(SETTINGS[flow] | settings))
        for seed, potential, (flow, depth) in product(seeds, POTENTIALS, POSTERIORS)
    ]


def fit_missing(folder: Path, runs: Sequence[PotentialRun], jobs: int = 1) -> None:
    """Fits what is not finished, in so many worker processes."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    todo = [run for run in runs if not _path(folder, run).is_file()]
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    fits = parallel(joblib.delayed(fit_potential)(run) for run in todo)
    for result in tqdm(fits, total=len(todo), desc="potentials", unit="fit"):
        settings = {entry.name: result[entry.name] for entry in fields(PotentialRun)}
        write_whole(_path(folder, PotentialRun(**settings)), json.dumps(result).encode())


def _path(folder: Path, run: PotentialRun) -> Path:
    return folder / "runs" / f"{run.name}.json"


def write_results(folder: Path, runs: Sequence[PotentialRun]) -> None:
    """Writes table.md; of finished runs, summary.csv (a row a run) and densities.png before it.

    Raises:
        FileNotFoundError: no run is finished and there is no summary.csv.
    """
    paths = [_path(folder, run) for run in runs]
    finished = [json.loads(path.read_text()) for path in paths if path.is_file()]
    if finished:
        columns = "potential flow num_flows seed kl stderr".split()
        table = pd.DataFrame(finished)[columns]
        table.to_csv(folder / "summary.csv", index=False, float_format="%.6g")
        draw_densities(finished).savefig(folder / "densities.png", dpi=110)
    write_table(folder, pd.read_csv(folder / "summary.csv"), runs)


def write_table(folder: Path, table: pd.DataFrame, runs: Sequence[PotentialRun]) -> None:
    """Writes table.md from summary.csv: mean, deviation and worst seed, and how runs were made."""
    kl = table.groupby(["flow", "num_flows", "potential"], sort=False)["kl"]
    text = kl.agg(lambda v: f"{mean_std(v, 4)} ({v.max():.4f})").unstack()
    text.insert(0, "posterior", [method_name(*posterior) for posterior in text.index])
    write_page(
        folder / "table.md",
        "# KL(q || p) in nats: mean ± standard deviation (worst) over seeds",
        markdown(text),
        f"Made by `python -m results.potentials.make --fit`: seeds {sorted(set(table['seed']))}, "
        f"Adam with a learning rate that rises over 1/{WARMUP} of the steps and falls to 1/{FALL} "
        f"on a cosine, the gradient clipped at {CLIP_NORM:g}, the entropy of q weighted by "
        f"{runs[0].temperature:g} falling to 1 on a line over the first half of the steps; KL from "
        f"{runs[0].num_samples:,} draws of q.",
        "\n".join(dict.fromkeys(_training(run) for run in runs)),
        "U2 to U4 are improper in z1: the wall 10 max(0, |z1| - 4)^2 is added to them; log Z by "
        "quadrature. densities.png shows the lowest seed.",
    )


def _training(run: PotentialRun) -> str:
    options = "".join(f", {name} {value}" for name, value in run.flow_options.items())
    return (
        f"- {run.flow}: {run.num_steps} steps of {run.batch_size} draws, learning rate "
        f"{run.learning_rate:g}{options}"
    )


def draw_densities(finished: Sequence[dict[str, Any]]) -> Any:
    """The figure of each potential's density and its posteriors' at the first seed."""
    panels = {u: {"p": _density(u)} for u in POTENTIALS}
    for run in finished:
        if run["seed"] == finished[0]["seed"]:
            name = method_name(run["flow"], run["num_flows"])
            panels[run["potential"]][name] = np.array(run["density"])
    return plot_densities(panels, EDGES)


def _density(potential: str) -> np.ndarray:
    centres = torch.as_tensor((EDGES[:-1] + EDGES[1:]) / 2)
    energy = POTENTIALS[potential]
    density = (-energy(torch.cartesian_prod(centres, centres)) - log_normalizer(energy)).exp()
    return density.reshape(len(centres), -1).numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes the folder's tables and figure."""
    command = parser(__file__, __doc__)
    command.add_argument("--fit", action="store_true", help="fits what is not fitted yet")
    command.add_argument("--jobs", type=int, default=1, help="worker processes")
    values = parse(command, argv)
    runs = runs_of(SEEDS[:1], **QUICK) if values.quick else runs_of(SEEDS)
    if values.quick or values.fit:
        fit_missing(values.folder, runs, values.jobs)
    write_results(values.folder, runs)


if __name__ == "__main__":
    run_script(main, "potentials")

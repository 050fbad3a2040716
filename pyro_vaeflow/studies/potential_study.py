"""How well each posterior fits the potentials: ``python -m pyro_vaeflow.studies.potential_study``.

One run is a potential, a posterior and a seed; those of one posterior are fitted together. A
finished run is a JSON file, so a killed study goes on with the next posterior; the tables and the
figure come from these files alone.
"""

import json
from argparse import ArgumentParser
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from pyro_vaeflow.experiments.report import as_text
from pyro_vaeflow.experiments.tables import mean_std
from pyro_vaeflow.inference.saved_folder import write_whole
from pyro_vaeflow.plots.densities import plot_densities
from pyro_vaeflow.studies.potential_run import (
    CLIP_NORM,
    EDGES,
    FALL,
    WARMUP,
    PotentialRun,
    fit_potentials,
)
from pyro_vaeflow.studies.potentials import POTENTIALS, log_normalizer

POSTERIORS = (("planar", 2), ("planar", 8), ("planar", 32), ("spline", 4), ("iaf", 8), ("iaf", 32))
# A planar step is the cheapest and learns the least. The wall lets z1 go past 4, so must a spline.
SETTINGS: dict[str, dict[str, Any]] = {
    "planar": {"num_steps": 6000, "batch_size": 256, "learning_rate": 2e-2},
    "iaf": {
        "num_steps": 5000,
        "batch_size": 128,
        "learning_rate": 1e-2,
        "flow_options": {"hidden_dim": 16},
    },
    "spline": {
        "num_steps": 3000,
        "batch_size": 256,
        "learning_rate": 1e-2,
        "flow_options": {"hidden_dim": 128, "count_bins": 16, "bound": 6.0},
    },
}


def study(
    out: Path, seeds: list[int], num_steps: int | None = None, jobs: int = 1, quick: bool = False
) -> None:
    """Runs what is not finished yet and writes summary.csv, table.md and densities.png.

    Args:
        out: the results folder.
        seeds: of initial parameters and noise.
        num_steps: of training, in place of those of `SETTINGS`.
        jobs: worker processes.
        quick: one seed and 20 steps, to see that it runs.
    """
    if quick:
        seeds, num_steps = seeds[:1], 20
    given = {} if num_steps is None else {"num_steps": num_steps}
    if quick:
        given["num_samples"] = 2000
    grid = product(seeds, POTENTIALS, POSTERIORS)
    runs = [PotentialRun(u, m, k, seed, **(SETTINGS[m] | given)) for seed, u, (m, k) in grid]
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [run for run in runs if not (folder / f"{run.name}.json").exists()]
    groups = [[r for r in todo if (r.model, r.num_flows) == posterior] for posterior in POSTERIORS]
    calls = [joblib.delayed(_keep)(group, folder) for group in groups if group]
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    for _ in tqdm(parallel(calls), total=len(calls), desc="potentials", unit="posterior"):
        _write_finished(out, runs)
    _write_finished(out, runs)


def _write_finished(out: Path, runs: list[PotentialRun]) -> None:
    """The tables of what is finished: a study that is killed leaves those of its last posterior."""
    paths = [out / "runs" / f"{run.name}.json" for run in runs]
    write_results(out, [json.loads(path.read_text()) for path in paths if path.is_file()])


def _keep(runs: list[PotentialRun], folder: Path) -> None:
    for run, result in zip(runs, fit_potentials(runs), strict=True):
        write_whole(folder / f"{run.name}.json", json.dumps(result).encode())


def write_results(out: Path, results: list[dict[str, Any]]) -> None:
    """summary.csv (a row a run), table.md (mean, deviation and worst seed), densities.png."""
    table = pd.DataFrame(results).drop(columns="density")
    columns = "potential model num_flows seed kl stderr".split()
    table[columns].to_csv(out / "summary.csv", index=False, float_format="%.6g")
    kl = table.groupby(["model", "num_flows", "potential"], sort=False)["kl"]
    text = kl.agg(lambda v: f"{mean_std(v, 4)} ({v.max():.4f})").unstack()
    text.insert(0, "posterior", [f"{model} {depth}" for model, depth in text.index])
    used = results[0]  # runs of one call differ in potential, seed, and what `_training` says
    training = dict.fromkeys(_training(result) for result in results)
    parts = [
        "# KL(q || p) in nats: mean ± standard deviation (worst) over seeds",
        as_text(text, "md"),
        "Made by `python -m pyro_vaeflow.studies.potential_study`: "
        f"seeds {sorted(set(table['seed']))}, Adam with a learning rate that rises over "
        f"1/{WARMUP} of the steps and falls to 1/{FALL} on a cosine, each fit's "
        f"gradient clipped at {CLIP_NORM:g}, the entropy of q weighted by "
        f"{used['temperature']:g} falling to 1 on a line over the first half of the steps; KL from "
        f"{used['num_samples']:,} draws of q.",
        "\n".join(training),
        "U2 to U4 are improper in z1: the wall 10 max(0, |z1| - 4)^2 is added to them; log Z by "
        "quadrature. densities.png shows the lowest seed.",
    ]
    (out / "table.md").write_text("\n\n".join(parts) + "\n")
    first = [r for r in results if r["seed"] == results[0]["seed"]]
    panels = {u: {"p": _density(u)} for u in POTENTIALS}
    for r in first:
        panels[r["potential"]][f"{r['model']} {r['num_flows']}"] = np.array(r["density"])
    plot_densities(panels, EDGES).savefig(out / "densities.png", dpi=110)


def _training(result: dict[str, Any]) -> str:
    options = "".join(f", {name} {value}" for name, value in result["flow_options"].items())
    steps, rate = result["num_steps"], result["learning_rate"]
    draws = result["batch_size"]
    return f"- {result['model']}: {steps} steps of {draws} draws, learning rate {rate:g}{options}"


def _density(potential: str) -> np.ndarray:
    centres = torch.as_tensor((EDGES[:-1] + EDGES[1:]) / 2)
    grid = torch.cartesian_prod(centres, centres)
    energy = POTENTIALS[potential]
    density = (-energy(grid) - log_normalizer(energy)).exp()
    return density.reshape(len(centres), -1).numpy()


def main() -> None:
    """Reads the command line and runs `study`."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/potentials"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--num_steps", type=int, help="of training, of each posterior")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps")
    study(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()

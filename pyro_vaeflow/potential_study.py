"""How well each posterior fits the potentials: ``python -m pyro_vaeflow.potential_study``.

One run is a potential, a posterior and a seed. A finished run is a JSON file, so a killed study
goes on where it was; the tables and the figure come from these files alone.
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

from pyro_vaeflow.densities import plot_densities
from pyro_vaeflow.potential_run import EDGES, FALL, NUM_ROWS, PotentialRun, fit_potential
from pyro_vaeflow.potentials import POTENTIALS, log_normalizer
from pyro_vaeflow.report import as_text
from pyro_vaeflow.tables import mean_std

POSTERIORS = (("planar", 2), ("planar", 8), ("planar", 32), ("iaf", 8), ("iaf", 32), ("spline", 2))


def study(
    out: Path, seeds: list[int], num_steps: int = 3000, jobs: int = 1, quick: bool = False
) -> None:
    """Runs what is not finished yet and writes summary.csv, table.md and densities.png.

    Args:
        out: the results folder.
        seeds: of initial parameters and noise.
        num_steps: of training.
        jobs: worker processes.
        quick: one seed and 20 steps, to see that it runs.
    """
    if quick:
        seeds, num_steps = seeds[:1], min(num_steps, 20)
    grid = product(seeds, POTENTIALS, POSTERIORS)
    runs = [PotentialRun(u, model, k, seed, num_steps) for seed, u, (model, k) in grid]
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [run for run in runs if not (folder / f"{run.name}.json").exists()]
    calls = (joblib.delayed(_keep)(run, folder) for run in todo)
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    for _ in tqdm(parallel(calls), total=len(todo), desc="potentials", unit="run"):
        pass
    write_results(out, [json.loads((folder / f"{r.name}.json").read_text()) for r in runs])


def _keep(run: PotentialRun, folder: Path) -> None:
    partial = folder / f".{run.name}.partial"
    partial.write_text(json.dumps(fit_potential(run)))
    partial.rename(folder / f"{run.name}.json")


def write_results(out: Path, results: list[dict[str, Any]]) -> None:
    """summary.csv (a row a run), table.md (mean, deviation and worst seed), densities.png."""
    table = pd.DataFrame(results).drop(columns="density")
    columns = "potential model num_flows seed kl stderr seconds".split()
    table[columns].to_csv(out / "summary.csv", index=False, float_format="%.6g")
    kl = table.groupby(["model", "num_flows", "potential"], sort=False)["kl"]
    text = kl.agg(lambda v: f"{mean_std(v, 4)} ({v.max():.4f})").unstack()
    text.insert(0, "posterior", [f"{model} {depth}" for model, depth in text.index])
    used = results[0]  # the runs of a call differ in potential, posterior and seed alone
    rate = used["learning_rate"]
    parts = [
        "# KL(q || p) in nats: mean ± standard deviation (worst) over seeds",
        as_text(text, "md"),
        f"Made by `python -m pyro_vaeflow.potential_study`: {used['num_steps']} steps of "
        f"{used['batch_size']} draws, Adam {rate:g} falling to {rate / FALL:g} on a cosine, seeds "
        f"{sorted(set(table['seed']))}; KL from {NUM_ROWS * used['num_samples']:,} draws of q. "
        "log Z by quadrature; U2 to U4 have the wall 10 max(0, |z1| - 4)^2.",
    ]
    (out / "table.md").write_text("\n\n".join(parts) + "\n")
    first = [r for r in results if r["seed"] == results[0]["seed"]]
    panels = {u: {"p": _density(u)} for u in POTENTIALS}
    for r in first:
        panels[r["potential"]][f"{r['model']} {r['num_flows']}"] = np.array(r["density"])
    plot_densities(panels, EDGES).savefig(out / "densities.png", dpi=110)


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
    parser.add_argument("--num_steps", type=int, default=3000, help="of training")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps")
    study(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()

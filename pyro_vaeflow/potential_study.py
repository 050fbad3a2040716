"""How well each posterior fits the potentials: ``python -m pyro_vaeflow.potential_study``.

One run is a potential, a posterior and a seed. A finished run is a JSON file, so a killed study
goes on where it was; the tables and the figure come from these files alone.
"""

import json
import time
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from pyro_vaeflow.annealing import cosine
from pyro_vaeflow.densities import plot_densities
from pyro_vaeflow.draws import trace_chunks
from pyro_vaeflow.isolation import seeded
from pyro_vaeflow.potentials import POTENTIALS, FlowGuide, PotentialModel, log_normalizer
from pyro_vaeflow.traces import row_terms
from pyro_vaeflow.training import train

POSTERIORS = (("planar", 2), ("planar", 8), ("planar", 32), ("iaf", 8), ("iaf", 32), ("spline", 2))
EDGES = np.linspace(-4.5, 4.5, 91)  # of the histogram that stands for a density
DRAWS = 200  # of each of 1,000 rows: 200,000 draws of q for the KL and the histogram


@dataclass(frozen=True)
class PotentialRun:
    """The settings of one run; `name` is its file's."""

    potential: str
    model: str
    num_flows: int
    seed: int
    num_steps: int = 3000
    batch_size: int = 256
    learning_rate: float = 5e-3

    @property
    def name(self) -> str:
        return f"{self.potential}-{self.model}{self.num_flows}-seed{self.seed}-{self.num_steps}"


def fit_potential(run: PotentialRun) -> dict[str, Any]:
    """Fits one posterior: KL(q || p) with its standard error, nats, and a histogram of q.

    Example:
        >>> result = fit_potential(PotentialRun("U1", "planar", 2, seed=0, num_steps=20))
        >>> result["kl"] > 0
        True
    """
    energy = POTENTIALS[run.potential]
    with seeded(run.seed):
        model, guide = PotentialModel(energy), FlowGuide(run.model, run.num_flows)
    started = time.perf_counter()
    train(
        model,
        guide,
        torch.zeros(run.batch_size, 1),
        num_steps=run.num_steps,
        batch_size=run.batch_size,
        learning_rate=cosine(run.num_steps, run.learning_rate, run.learning_rate / 100),
        seed=run.seed,
        progress=False,
    )
    seconds = time.perf_counter() - started
    elbo, counts = [], np.zeros((len(EDGES) - 1, len(EDGES) - 1))
    rows = torch.arange(1000.0).unsqueeze(-1)  # the rows' values only tell their noise apart
    for traces in trace_chunks(model, guide, rows, num_samples=DRAWS, seed=run.seed):
        elbo.append(row_terms(*traces).log_weight.flatten().double())
        z = traces[1].nodes["z"]["value"].reshape(-1, 2).numpy()
        counts += np.histogram2d(z[:, 0], z[:, 1], bins=[EDGES, EDGES])[0]
    terms = torch.cat(elbo)
    return {
        **asdict(run),
        "kl": log_normalizer(energy) - terms.mean().item(),
        "stderr": terms.std().item() / len(terms) ** 0.5,
        "seconds": seconds,
        "density": (counts / counts.sum() / (EDGES[1] - EDGES[0]) ** 2).round(5).tolist(),
    }


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
    text = kl.agg(lambda v: f"{v.mean():.4f} ± {v.std():.4f} ({v.max():.4f})").unstack()
    settings = ", ".join(f"{k} {table[k].iloc[0]}" for k in ("num_steps", "batch_size"))
    lines = [
        "# KL(q || p) in nats: mean ± standard deviation (worst) over seeds",
        "",
        "| posterior | " + " | ".join(text.columns) + " |",
        "| --- " * (len(text.columns) + 1) + "|",
        *(
            "| " + " | ".join([f"{row[0]} {row[1]}", *row[2:]]) + " |"
            for row in text.reset_index().values
        ),
        "",
        f"Made by `python -m pyro_vaeflow.potential_study`: {settings}, Adam 5e-3 falling to 5e-5 "
        f"on a cosine, seeds {sorted(set(table.seed))}; KL from {1000 * DRAWS:,} draws of q. log Z "
        "by quadrature; U2 to U4 have the wall 10 max(0, |z1| - 4)^2.",
    ]
    (out / "table.md").write_text("\n".join(lines) + "\n")
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

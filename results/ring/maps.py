"""Maps of -log p(x) over the plane: refined evidence beside quadrature and the truth."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow import Model, score
from pyro_vaeflow.datasets.ring import ring_log_density
from pyro_vaeflow.experiments.results import finished_runs, method_name
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.inference.refine import doubtful
from pyro_vaeflow.inference.scoring import KhatWarning
from pyro_vaeflow.plots.maps import plot_score_maps
from results.shared.pages import markdown, write_page

REACH = 1.25  # of a map
# Places along a side of a map; latents along a side of each square, the widest square first.
BUDGET: dict[str, Any] = {"places": 25, "latents": (400, 400, 400, 2400)}
QUICK: dict[str, Any] = {"places": 3, "latents": (8, 8, 8, 40)}
WIDEST = 32.0  # half a side of the widest square; the next one is half as wide
CELLS = 40.0  # of decoded latents that are taken together, to a standard deviation of the decoder's


def quadrature(model: Model, x: torch.Tensor, latents: Sequence[int]) -> torch.Tensor:
    """log p(x) of a model of two latents and one scale a column, ``(num_data,)``, nats.

    Squares of latents lie in one another: what is far from the ring has latents that are large.

    Args:
        latents: along a side of each square, a multiple of 4.
    """
    total, reach = torch.full_like(x[:, 0], -torch.inf), WIDEST
    for number, count in enumerate(latents):
        step = 2.0 * reach / count
        axis = (torch.arange(count) + 0.5) * step - reach
        z = torch.cartesian_prod(axis, axis)
        if number < len(latents) - 1:
            z = z[z.abs().amax(-1) > reach / 2]
        of_x = model.decode(z).base_dist
        scale = of_x.scale[0]
        loc, log_mass = _pooled(of_x.loc / scale, -0.5 * z.square().sum(-1))
        constant = 2.0 * np.log(step / (2.0 * np.pi)) - scale.log().sum()
        for some, mass in zip(loc.split(2000), log_mass.split(2000), strict=True):
            distance = torch.cdist(x / scale, some, compute_mode="donot_use_mm_for_euclid_dist")
            log_joint = distance.square_().mul_(-0.5).add_(mass).logsumexp(-1)
            total = total.logaddexp(log_joint + constant)
        reach /= 2
    return total


def _pooled(loc: torch.Tensor, log_mass: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Points ``(count, 2)`` that share a cell as one, at their mean."""
    cell = (CELLS * loc).round().long()
    _, index = (cell[:, 0] * 2**32 + cell[:, 1]).unique(return_inverse=True)
    num_cells = int(index.max()) + 1
    peak = log_mass.new_full((num_cells,), -torch.inf).scatter_reduce(0, index, log_mass, "amax")
    mass = (log_mass - peak[index]).exp()
    total = torch.zeros(num_cells).index_add(0, index, mass)
    mean = torch.zeros(num_cells, 2).index_add(0, index, mass.unsqueeze(-1) * loc)
    return mean / total.unsqueeze(-1), peak + total.log()


def write_maps(folder: Path, *, places: int, latents: Sequence[int]) -> None:
    """Writes maps.csv, a line a place and posterior, from the first run of each; nats."""
    axis = torch.linspace(-REACH, REACH, places)
    x = torch.cartesian_prod(axis, axis)
    tables: dict[str, pd.DataFrame] = {}
    for run in finished_runs(folder):
        name = method_name(run.config.flow, run.config.num_flows or 0)
        path = run.folder / f"maps-{places}-{'-'.join(map(str, latents))}.csv"
        if name not in tables and not path.is_file():
            _measured(run.folder, x, latents).to_csv(path, index=False, float_format="%.5g")
        if name not in tables:
            tables[name] = pd.read_csv(path).assign(posterior=name)
    pd.concat(tables.values()).to_csv(folder / "maps.csv", index=False)


@torch.no_grad()
def _measured(folder: Path, x: torch.Tensor, latents: Sequence[int]) -> pd.DataFrame:
    config, model, guide = load_programs(folder)
    options: dict[str, Any] = {"num_samples": config.num_samples, "seed": config.seed}
    with warnings.catch_warnings(action="ignore", category=KhatWarning):
        drawn = score(model, guide, x, **options)
        refined = score(model, guide, x, refine="all", progress=True, **options)
    columns = {
        "x1": x[:, 0],
        "x2": x[:, 1],
        "reconstruction": drawn.reconstruction,
        "importance": drawn.importance,
        "khat": drawn.khat,
        "is_doubtful": doubtful(
            model, guide, (x,), drawn.log_evidence, drawn.khat, seed=config.seed
        ),
        "refined": refined.importance,
        "refined_khat": refined.khat,
        "quadrature": -quadrature(model.eval(), x, latents),
        "truth": -torch.as_tensor(ring_log_density(x)),
    }
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


def draw_maps(folder: Path) -> None:
    """Draws each posterior's figure of maps.csv, and writes maps.md."""
    lines = []
    table = pd.read_csv(folder / "maps.csv")
    for number, (name, rows) in enumerate(table.groupby("posterior", sort=False), start=2):
        wide = rows.pivot(index="x2", columns="x1")
        axes, truth = (wide["truth"].columns.to_numpy(), wide.index.to_numpy()), wide["truth"]
        titles = {f"{name}: reconstruction": "reconstruction", "importance, refined": "refined"}
        titles["-log p(x) of its model"] = "quadrature"
        figure = plot_score_maps(
            {title: (*axes, wide[column]) for title, column in titles.items()},
            reference=(*axes, truth),
            label="score, nats",
            limits=(truth.min().min(), truth.max().max()),
            linear_width=10.0,
        )
        stem = str(name).replace(" ", "").lower() + "0" * (name == "diagonal")
        figure.savefig(folder / "figures" / f"figure{number}_{stem}.png", dpi=100)
        of_draws, refined = rows["importance"], rows["refined"]
        lines += [
            _compared(f"{name}: 100 draws", rows, of_draws),
            _compared(f"{name}: refine=True", rows, refined.where(rows["is_doubtful"], of_draws)),
            _compared(f'{name}: refine="all"', rows, refined),
        ]
    write_page(
        folder / "maps.md",
        f"# {folder.resolve().name}: maps beside quadrature",
        markdown(pd.DataFrame(lines)),
        f"Made by `python -m results.{folder.resolve().name}.make` from the first run of each "
        "posterior, at places of a square grid, most of them off the ring. Error: the importance "
        "score less -log p(x) of the same model by quadrature over its two latents, nats.",
    )


def _compared(name: str, rows: pd.DataFrame, score: pd.Series) -> dict[str, Any]:
    error = score - rows["quadrature"]
    return {
        "posterior: score": name,
        "median error": f"{error.median():+.3f}",
        "error, 99% of places": f"{error.abs().quantile(0.99):.2f}",
        "largest": f"{error.loc[error.abs().idxmax()]:+.2f}",
        "within 0.1": f"{(error.abs() <= 0.1).mean():.1%}",
        "above 1": f"{(error.abs() > 1.0).mean():.1%}",
    }

"""Evidence of the ring's models beside quadrature: the guide's draws, and refined; with maps."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow import Guide, Model
from pyro_vaeflow.experiments.results import finished_runs, method_name
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.inference.scoring import KHAT_LIMIT, Scores, score
from pyro_vaeflow.metrics import auroc
from pyro_vaeflow.plots.maps import plot_score_maps
from results.shared.pages import markdown, write_page

KINDS = ("inliers", "outliers")
# rows of each kind; places along each side of a map; points along each side of a grid of latents
BUDGET = {"rows": 30, "places": 11, "size": 401}
QUICK = {"rows": 1, "places": 2, "size": 41}
REACH = 1.5  # of a map


def grid_evidence(model: Model, x: torch.Tensor, size: int) -> torch.Tensor:
    """log p(x) by quadrature over two latents, for rows with one scale: ``(num_data,)``, nats."""
    axis = torch.linspace(-7.0, 7.0, size, dtype=x.dtype)
    total = torch.full_like(x[:, 0], -math.inf)
    with torch.no_grad():
        for part in axis.split(20):
            z = torch.cartesian_prod(part, axis)
            of_x = model.eval().decode(z).base_dist
            loc, scale = of_x.loc / of_x.scale[0], of_x.scale[0]
            square = torch.cdist(x / scale, loc, compute_mode="donot_use_mm_for_euclid_dist")
            square = square.square() + z.square().sum(-1)
            constant = scale.log().sum() + 2.0 * math.log(2.0 * math.pi)
            total = total.logaddexp((-0.5 * square).logsumexp(-1) - constant)
    return total + 2.0 * (axis[1] - axis[0]).log()


def write_evidence(folder: Path, *, rows: int, places: int, size: int) -> None:
    """Writes evidence.csv, a line a test row of each posterior's first run, and figures of maps."""
    tables: dict[str, pd.DataFrame] = {}
    for run in finished_runs(folder):
        name = method_name(run.config.flow, run.config.num_flows)
        if name in tables:
            continue
        _, model, guide = load_programs(run.folder)
        pair = model.double(), guide.double()
        task = load_task(run.config)
        kinds = [np.flatnonzero(task.is_anomaly == kind)[:rows] for kind in (0, 1)]
        index = np.concatenate(kinds)
        x = task.x_test[index].double()
        plain, refined = score(*pair, x), score(*pair, x, refine="all")
        table = pd.DataFrame({"posterior": name, "is_anomaly": task.is_anomaly[index]})
        table["quadrature"] = grid_evidence(model, x, size).numpy()
        for heading, scores in (("draws", plain), ("refined", refined)):
            for column in ("log_evidence", "stderr", "khat"):
                table[f"{column}_{heading}"] = getattr(scores, column).numpy()
        tables[name] = table
        _draw(folder, name, *pair, places, size)
    pd.concat(tables.values()).to_csv(folder / "evidence.csv", index=False, float_format="%.6g")


def _draw(folder: Path, name: str, model: Model, guide: Guide, places: int, size: int) -> None:
    axis = torch.linspace(-REACH, REACH, places, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)

    def grid(log_evidence: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return axis.numpy(), axis.numpy(), -log_evidence.reshape(places, places).T.numpy()

    def of(scores: Scores) -> torch.Tensor:
        return scores.log_evidence

    truth = grid(grid_evidence(model, points, size))
    maps = {
        f"{name}: 100 draws": grid(of(score(model, guide, points))),
        "refined": grid(of(score(model, guide, points, refine="all"))),
        "quadrature": truth,
    }
    limits = float(truth[2].min()), float(truth[2].max())
    figure = plot_score_maps(maps, label="-log p(x), nats", limits=limits, linear_width=10.0)
    path = folder / "figures" / f"evidence_{name.replace(' ', '')}.png"
    figure.savefig(path, dpi=80)


def write_evidence_page(folder: Path) -> None:
    """Writes evidence.md from evidence.csv."""
    table = pd.read_csv(folder / "evidence.csv")
    lines, ranks = [], []
    for name, of_name in table.groupby("posterior", sort=False):
        names = {"100 draws": "log_evidence_draws", "refined": "log_evidence_refined"}
        names["quadrature"] = "quadrature"
        ranks.append(
            {"posterior": name}
            | {k: round(auroc(of_name["is_anomaly"], -of_name[v]), 4) for k, v in names.items()}
        )
        for kind, group in of_name.groupby("is_anomaly"):
            line = {"posterior": name, "rows": f"{len(group)} {KINDS[int(kind)]}"}
            for heading in ("draws", "refined"):
                error = group[f"log_evidence_{heading}"] - group["quadrature"]
                off = error.abs() > 3.0 * group[f"stderr_{heading}"]
                line[f"mean error, {heading}"] = f"{error.mean():+.3f}"
                line[f"worst, {heading}"] = f"{error.iloc[error.abs().argmax()]:+.2f}"
                line[f"within 3 errors, {heading}"] = f"{(~off).mean():.0%}"
                line[f"k-hat > 0.7, {heading}"] = (
                    f"{(group[f'khat_{heading}'] > KHAT_LIMIT).mean():.0%}"
                )
            lines.append(line)
    write_page(
        folder / "evidence.md",
        f"# {folder.resolve().name}: evidence beside quadrature",
        markdown(pd.DataFrame(lines)),
        "Made by `python -m results.ring.make --evidence` from the first run of each posterior: "
        "log evidence less that by quadrature over both latents, nats. Draws: 100 of q.",
        "AUROC of -log p(x) on these rows:",
        markdown(pd.DataFrame(ranks)),
    )

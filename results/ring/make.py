"""The ring's figures, A(x) of each posterior beside the truth, and what each lacks of the truth."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.datasets.registry import ring_log_density
from pyro_vaeflow.experiments.config import GapSettings
from pyro_vaeflow.experiments.results import FinishedRun, finished_runs, method_name, read_arrays
from pyro_vaeflow.experiments.tasks import Task, load_task
from pyro_vaeflow.inference.inference_gap import Gaps
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.plots.maps import plot_points, plot_score_maps
from results.ring.prior_gap import prior_gap
from results.shared.gaps import QUICK, write_gaps, write_gaps_page
from results.shared.pages import parse, parser, run_quick

SETTINGS = GapSettings(rows=250, num_steps=100)


def draw_figures(folder: Path) -> list[Path]:
    """Draws ``folder/figures`` from the finished runs that have a map of the ring; the paths made.

    Figure 1 shows the training rows; the others one posterior each, at its lowest seed: the
    reconstruction and the importance score beside the true -log p(x), nats, all on the scale of
    the truth.
    """
    first: dict[str, FinishedRun] = {}
    for run in finished_runs(folder):
        if run.config.dataset == "ring" and (run.folder / "map.npz").is_file():
            first.setdefault(run.config.digest, run)
    if not first:
        return []
    (folder / "figures").mkdir(exist_ok=True)
    paths = [folder / "figures" / "figure1_data.png"]
    points = load_task(next(iter(first.values())).config).x_train.numpy()
    plot_points(points, title="training rows").savefig(paths[0], dpi=100)
    for number, run in enumerate(first.values(), start=2):
        flow, depth = run.config.flow, run.config.num_flows
        paths.append(folder / "figures" / f"figure{number}_{flow}{depth}.png")
        _draw(read_arrays(run.folder / "map.npz"), method_name(flow, depth), paths[-1])
    return paths


def _draw(maps: Mapping[str, np.ndarray], name: str, path: Path) -> None:
    xx, yy = np.meshgrid(maps["axis"], maps["axis"])
    truth = -ring_log_density(np.stack([xx, yy], axis=-1))
    panels = {f"{name}: {score}": (xx, yy, maps[score]) for score in maps if score != "axis"}
    figure = plot_score_maps(
        panels,
        reference=(xx, yy, truth),
        label="score, nats",
        limits=(float(truth.min()), float(truth.max())),
        linear_width=10.0,
    )
    figure.savefig(path, dpi=100)


def beside_truth(
    model: Program,
    guide: Program,
    task: Task,
    x: torch.Tensor,
    gaps: Gaps,
    seed: int,
    num_samples: int,
) -> dict[str, float]:
    """What the evidence of rows lacks of their true density: the prior's part and the decoder's."""
    true = float(ring_log_density(x).mean())
    gain = prior_gap(model, guide, task.x_train, x, num_samples=num_samples, seed=seed)
    return {
        "true_log_density": true,
        "decoder_gap": true - (gaps.log_evidence + gain).double().mean().item(),
        "prior_gap": gain.double().mean().item(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes the folder's figures and tables."""
    values = parse(parser(__file__, __doc__), argv)
    folder, settings = values.folder, QUICK if values.quick else SETTINGS
    if values.quick:
        run_quick("ring", folder)
    draw_figures(folder)
    if {run.config.dataset for run in finished_runs(folder)} == {"ring"}:
        write_gaps(folder, settings, partial(beside_truth, num_samples=settings.num_samples))
    elif (folder / "gaps.csv").is_file():
        write_gaps_page(folder, pd.read_csv(folder / "gaps.csv"), settings)


if __name__ == "__main__":
    main()

"""Figures of a study of the ring: its rows, and each posterior's scores beside the truth."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pyro_vaeflow.datasets.registry import ring_log_density
from pyro_vaeflow.experiments.results import FinishedRun, finished_runs, method_name, read_arrays
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.plain_files import inside, write_whole
from pyro_vaeflow.plots.maps import plot_points, plot_score_maps


def draw_figures(out: Path) -> list[Path]:
    """Draws ``out/figures`` from the finished runs that keep a map of the ring; the paths made.

    Figure 1 shows the training rows; the others one posterior each, at its lowest seed: the
    reconstruction and the importance score beside the true -log p(x), nats, all on the scale of
    the truth.
    """
    first: dict[str, FinishedRun] = {}
    for run in finished_runs(out):
        if run.config.dataset == "ring" and (run.folder / "map.npz").is_file():
            first.setdefault(run.config.digest, run)
    if not first:
        return []
    inside(out / "figures", out).mkdir(exist_ok=True)
    shown = list(first.values())
    path = out / "figures" / "figure1_data.png"
    points = load_task(shown[0].config).x_train.numpy()
    _write(plot_points(points, title="training rows"), path)
    paths = [path]
    for number, run in enumerate(shown, start=2):
        config = run.config
        maps = read_arrays(run.folder / "map.npz")
        name = method_name(config.flow, config.num_flows)
        path = out / "figures" / f"figure{number}_{config.flow}{config.num_flows}.png"
        _beside_truth(maps, name, path)
        paths.append(path)
    return paths


def _beside_truth(maps: Mapping[str, np.ndarray], name: str, path: Path) -> None:
    xx, yy = np.meshgrid(maps["axis"], maps["axis"])
    truth = -ring_log_density(np.stack([xx, yy], axis=-1))
    panels = {
        f"{name}: reconstruction": (xx, yy, maps["reconstruction"]),
        f"{name}: importance": (xx, yy, maps["importance"]),
    }
    figure = plot_score_maps(
        panels,
        reference=(xx, yy, truth),
        label="score, nats",
        limits=(float(truth.min()), float(truth.max())),
        linear_width=10.0,
    )
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    write_whole(path, picture.getvalue())

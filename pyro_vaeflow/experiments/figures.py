"""Figures of a study of the ring: its rows, and each posterior's scores beside the truth."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pyro_vaeflow.datasets.ring import ring_log_density
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
    path = out / "figures" / "figure1_data.png"
    points = load_task(next(iter(first.values())).config).x_train.numpy()
    _write(plot_points(points, title="training rows"), path)
    paths = [path]
    for number, run in enumerate(first.values(), start=2):
        flow, num_flows = run.config.flow, run.config.num_flows
        path = out / "figures" / f"figure{number}_{flow}{num_flows}.png"
        maps, name = read_arrays(run.folder / "map.npz"), method_name(flow, num_flows)
        xx, yy = np.meshgrid(maps["axis"], maps["axis"])
        truth = -ring_log_density(np.stack([xx, yy], axis=-1))
        figure = plot_score_maps(
            {f"{name}: {s}": (xx, yy, maps[s]) for s in ("reconstruction", "importance")},
            reference=(xx, yy, truth),
            label="score, nats",
            limits=(float(truth.min()), float(truth.max())),
            linear_width=10.0,
        )
        _write(figure, path)
        paths.append(path)
    return paths


def _write(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100)
    write_whole(path, picture.getvalue())

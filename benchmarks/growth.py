"""How a step grows with depth, width, latent size and batch, and a row's score with its draws."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.cases import cases, programs, rows
from benchmarks.record import Line
from benchmarks.steps import ours
from pyro_vaeflow import ExemplarPrior, score, train

DEPTHS, WIDTHS, LATENTS = (1, 3, 10, 30, 100), (32, 64, 128, 256, 512), (2, 4, 8, 16, 32)
BATCHES, DRAWS, ROWS = (125, 250, 500, 1000, 2000), (25, 50, 100, 200, 400), (200, 400, 800, 1600)
TRAINING = (500, 2000, 8000, 32000, 128000)  # rows that an exemplar prior is given
OF_SCORES = {"draws", "rows", "training rows"}

Curve = tuple[Sequence[int], Callable[[int], float]]  # sizes, and milliseconds of a size


def step_ms(num_steps: int, case: str = "planar 5", **changes: Any) -> float:
    """The processor's milliseconds of a training step of a case with changes, median."""
    config = replace(cases()[case], **changes)
    return 1e3 * median(ours(config, rows(2 * config.batch_size), num_steps))


def row_ms(num_rows: int, num_samples: int, exemplars: int = 0) -> float:
    """The processor's milliseconds of all rows' scores, under an exemplar prior if it is given."""
    (model, guide), x = programs(cases()["planar 5"]), rows(num_rows)
    if exemplars:
        model.prior = ExemplarPrior(rows(exemplars), guide.locate, model.latent_dim)
    train(model, guide, x, num_steps=1, progress=False)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score(model, guide, x, num_samples=num_samples)
    return 1e3 * (time.process_time() - start)


def curves(num_steps: int) -> dict[str, Curve]:
    """Name -> sizes, and milliseconds as a function of the size."""

    def of_width(n: int) -> float:
        return step_ms(num_steps, encoder_dims=(n, n // 2), decoder_dims=(n // 2, n))

    return {
        "depth, planar": (DEPTHS, lambda n: step_ms(num_steps, num_flows=n)),
        "depth, IAF": (DEPTHS, lambda n: step_ms(num_steps, "iaf 5", num_flows=n)),
        "width": (WIDTHS, of_width),
        "latent size": (LATENTS, lambda n: step_ms(num_steps, latent_dim=n)),
        "batch": (BATCHES, lambda n: step_ms(num_steps, batch_size=n)),
        "draws": (DRAWS, lambda n: row_ms(200, n)),
        "rows": (ROWS, lambda n: row_ms(n, 100)),
        "training rows": (TRAINING, lambda n: row_ms(200, 100, exemplars=n)),
    }


def exponent(sizes: Sequence[int], ms: Sequence[float]) -> float:
    """The slope of log milliseconds over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(ms), 1)[0])


def measure(num_steps: int, num_sizes: int, out: Path) -> Iterator[Line]:
    """A line a curve, whose figure is the fitted exponent beside 1; the points go to growth.csv."""
    points = [
        (name, size, milliseconds(size))
        for name, (sizes, milliseconds) in curves(num_steps).items()
        for size in sizes[:num_sizes]
    ]
    frame = pd.DataFrame(points, columns=["curve", "size", "ms"])
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "growth.csv", index=False, float_format="%.4g")
    groups = {str(name): group for name, group in frame.groupby("curve", sort=False)}
    plot(groups).savefig(out / "growth.png", dpi=110)
    for name, group in groups.items():
        item = "growth_" + name.replace(", ", "_").replace(" ", "_").lower()
        slope = exponent(group["size"].tolist(), group["ms"].tolist())
        yield Line(item, f"{group['size'].min()} to {group['size'].max()}", slope, 1.0, "exponent")


def plot(groups: Mapping[str, pd.DataFrame]) -> Figure:
    """Steps at the left, scores at the right, both axes logarithmic; a line of slope 1."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, group) in enumerate(groups.items()):
        axes = right if name in OF_SCORES else left
        slope = exponent(group["size"].tolist(), group["ms"].tolist())
        axes.plot(
            group["size"], group["ms"], marker="osD^v<>*"[number % 8], color="black",
            markerfacecolor=("black", "white", "0.6")[number % 3], linewidth=1.0,
            label=f"{name}: exponent {slope:.2f}",
        )  # fmt: skip
    for axes, title in ((left, "one training step"), (right, "scores, planar 5")):
        axes.set(xscale="log", yscale="log", xlabel="size", ylabel="ms of one thread", title=title)
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, 4.0 * top)  # room for the legend
        ends = np.array(axes.get_xlim())
        axes.plot(ends, bottom * ends / ends[0], "k:", linewidth=1, label="slope 1", scaley=False)
        axes.set_xlim(*ends)
        axes.legend(fontsize=8)
    return figure

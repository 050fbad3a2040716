"""How a step grows with depth, width, latent size and batch, and a row's score with its draws."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.cases import NUM_FEATURES, rows
from benchmarks.record import Line
from pyro_vaeflow import ExemplarPrior, Guide, Model, score, train

DEPTHS, WIDTHS, LATENTS = (1, 3, 10, 30, 100), (32, 64, 128, 256, 512), (2, 4, 8, 16, 32)
BATCHES, DRAWS, ROWS = (125, 250, 500, 1000, 2000), (25, 50, 100, 200, 400), (200, 400, 800, 1600)
TRAINING = (500, 2000, 8000, 32000, 128000)  # rows that an exemplar prior is given
FLOWS = {"planar": {}, "iaf": {"hidden_dim": 24, "stable": True}}
OF_SCORES = {"draws", "rows", "training rows"}
MARKERS = "osD^v<>*"


def step_ms(
    num_steps: int,
    flow: str = "planar",
    num_flows: int = 5,
    width: int = 128,
    latent_dim: int = 12,
    batch_size: int = 1000,
) -> float:
    """The processor's milliseconds of a training step, median."""
    sizes = {"latent_dim": latent_dim, "dropout": 0.2}
    model = Model(NUM_FEATURES, hidden_dims=(width // 2, width), **sizes)
    options = FLOWS[flow] and {**FLOWS[flow], "hidden_dim": max(24, latent_dim)}
    guide = Guide(
        NUM_FEATURES,
        hidden_dims=(width, width // 2),
        flow=flow,
        num_flows=num_flows,
        flow_options=options,
        **sizes,
    )
    starts: dict[int, float] = {}

    def rate(step: int) -> float:
        if step not in starts:
            starts[step] = time.process_time()
        return 1e-3

    x = rows(2 * batch_size)
    options = {"num_steps": num_steps + 2, "batch_size": batch_size, "progress": False}
    train(model, guide, x, learning_rate=rate, **options)
    return 1e3 * median(np.diff(list(starts.values()))[1:])


def row_ms(num_rows: int, num_samples: int, exemplars: int = 0) -> float:
    """The processor's milliseconds of all rows' scores, under an exemplar prior if it is given."""
    guide = Guide(NUM_FEATURES, flow="planar", num_flows=5)
    prior = ExemplarPrior(rows(exemplars), guide.locate, latent_dim=12) if exemplars else None
    model, x = Model(NUM_FEATURES, prior=prior), rows(num_rows)
    train(model, guide, x, num_steps=1, progress=False)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score(model, guide, x, num_samples=num_samples)
    return 1e3 * (time.process_time() - start)


def curves(num_steps: int) -> dict[str, tuple[Sequence[int], Callable[[int], float]]]:
    """Name -> sizes, and milliseconds as a function of the size."""
    return {
        "depth, planar": (DEPTHS, lambda n: step_ms(num_steps, "planar", n)),
        "depth, IAF": (DEPTHS, lambda n: step_ms(num_steps, "iaf", n)),
        "width": (WIDTHS, lambda n: step_ms(num_steps, width=n)),
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
    frame = pd.DataFrame(
        [
            (name, size, milliseconds(size))
            for name, (sizes, milliseconds) in curves(num_steps).items()
            for size in sizes[:num_sizes]
        ],
        columns=["curve", "size", "ms"],
    )
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
    for marker, (name, group) in zip(MARKERS, groups.items(), strict=False):
        axes = right if name in OF_SCORES else left
        slope = exponent(group["size"].tolist(), group["ms"].tolist())
        axes.plot(group["size"], group["ms"], marker=marker, label=f"{name}: exponent {slope:.2f}")
    for axes, title in ((left, "one training step"), (right, "scores, planar 5")):
        axes.set(xscale="log", yscale="log", xlabel="size", ylabel="ms of one thread", title=title)
        low, high = axes.get_xlim()
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, 4.0 * top)  # room for the legend
        ends = np.array([low, high])
        axes.plot(ends, bottom * ends / low, "k:", linewidth=1, label="slope 1", scaley=False)
        axes.set_xlim(low, high)
        axes.legend(fontsize=8)
    return figure

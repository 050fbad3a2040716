"""Charts of a training and of a detector: history, schedules, scores, and a row's reasons."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

LINES = ("-", "--", "-.", ":")  # curves differ by more than colour
# Panels of plot_history: y label, column, whether the axis is logarithmic.
HISTORY = (
    ("annealed loss (nats per row)", "loss", False),
    ("ELBO (nats per row)", "elbo", False),
    ("E[log p(x | z)] (nats per row)", "log_likelihood", False),
    ("KL (nats per row)", "kl", False),
    ("beta, or capacity (nats per row)", "anneal", False),
    ("gradient norm", "grad_norm", True),
)
MAX_BARS = 20  # columns drawn; the others are one bar
SPREADS = 2.0  # from the lowest score to the threshold: so much further, a row is far out


def plot_history(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """Draws the frame of a training `History`: each step in grey, its running mean in black.

    Held-out ELBOs are dots, all of them shown. Otherwise an axis spans the middle 99% of its
    values, since the first steps can dwarf all others.

    Raises:
        ValueError: the frame is empty or a column is missing.
    """
    missing = [name for _, name, _ in HISTORY if name not in frame]
    if missing or frame.empty:
        raise ValueError(
            f"frame must be a training history with rows; got {len(frame)} rows, missing columns "
            f"{missing}"
        )
    steps = frame.get("step", frame.index)
    held_out = frame.get("held_out_elbo", pd.Series(dtype=float)).dropna()
    figure = Figure(figsize=(9.6, 5.8), layout="constrained")
    for panel, (label, name, logarithmic) in zip(figure.subplots(2, 3).flat, HISTORY, strict=True):
        values = frame[name]
        panel.plot(steps, values, color="0.7", linewidth=0.5)
        window = 1 if name == "anneal" else max(1, len(frame) // 50)
        mean = values.rolling(window, min_periods=1, center=True).mean()
        panel.plot(steps, mean, color="black", linewidth=1.0)
        if logarithmic:
            panel.set_yscale("log")
        elif name != "anneal":
            low, high = values.quantile([0.005, 0.995])
            margin = 0.05 * (high - low) or 1.0
            panel.set_ylim(low - margin, high + margin)
        if name == "elbo" and len(held_out):
            low, high = panel.get_ylim()
            panel.plot(steps[held_out.index], held_out, "o", markersize=3, label="held out")
            panel.set_ylim(min(low, held_out.min()), max(high, held_out.max()))
            panel.legend()
        panel.set(xlabel="step", ylabel=label)
    figure.suptitle(title)
    return figure


def plot_schedules(
    schedules: Mapping[str, Callable[[int], float]], num_steps: int, *, label: str = "beta"
) -> Figure:
    """Draws schedules, name -> pure function of the step, over ``num_steps`` steps.

    Raises:
        ValueError: there is no schedule, or `num_steps` is below 1.

    Example:
        >>> from pyro_vaeflow import cyclical, linear
        >>> figure = plot_schedules({"linear": linear(100), "cyclical": cyclical(100)}, 100)
        >>> len(figure.axes[0].lines)
        2
    """
    if not schedules or num_steps < 1:
        raise ValueError(
            f"there must be a schedule and a step, got {len(schedules)} and num_steps={num_steps!r}"
        )
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.subplots()
    for number, (name, schedule) in enumerate(schedules.items()):
        values = [schedule(step) for step in range(num_steps)]
        axes.plot(values, LINES[number % len(LINES)], label=name)
    axes.set(xlabel="step", ylabel=label)
    axes.legend()
    return figure


def plot_scores(anomaly_score: ArrayLike, threshold: float | None = None) -> Figure:
    """Draws a histogram of anomaly scores, nats, high = anomalous; flagged rows are dark.

    The last bar holds all rows that are far out: one of them would squeeze the others into one bar.

    Raises:
        ValueError: no score is finite.

    Example:
        >>> plot_scores([1.0, 2.0, 9.0], threshold=5.0).axes[0].get_title()
        '1 of 3 rows flagged'
    """
    scores = np.asarray(anomaly_score, dtype=float)
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        raise ValueError(f"anomaly_score has no finite value among {len(scores)}")
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.subplots()
    cut = np.inf if threshold is None else threshold
    usual = np.quantile(finite, 0.99) if threshold is None else threshold
    far = max(usual, finite.min()) + SPREADS * abs(usual - finite.min())
    edges = np.histogram_bin_edges(finite.clip(max=far), min(100, max(10, len(finite) // 20)))
    groups = [part.clip(max=far) for part in (finite[finite <= cut], finite[finite > cut])]
    axes.hist(groups, edges.tolist(), stacked=True, color=["0.75", "0.15"])
    axes.set(xlabel="anomaly score, nats", ylabel="rows", yscale="log")
    if beyond := int((finite > far).sum()):
        axes.set_xlabel(f"anomaly score, nats (last bar: with {beyond} beyond {far:.4g})")
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.0)
        axes.set_title(f"{(scores > cut).sum()} of {len(scores)} rows flagged")
    return figure


def plot_contributions(nats: pd.Series) -> Figure:
    """Draws what columns add to a row's anomaly score, the largest first, the smallest as one bar.

    Raises:
        ValueError: there is no column.

    Example:
        >>> figure = plot_contributions(pd.Series({"size": 0.5, "kind": 7.0}))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['kind', 'size']
    """
    if nats.empty:
        raise ValueError("nats must have a value a column, got none")
    largest = nats.sort_values(ascending=False)
    shown, rest = largest.iloc[:MAX_BARS], largest.iloc[MAX_BARS:]
    values, names = shown.tolist(), [str(name) for name in shown.index]
    if len(rest):
        values.append(float(rest.sum()))
        names.append(f"{len(rest)} others")
    figure = Figure(figsize=(5.2, 0.9 + 0.25 * len(values)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(values)), values, color="0.4")
    axes.set_yticks(range(len(values)), names, parse_math=False)  # a name may have a $
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set(xlabel="contribution to the anomaly score, nats")
    return figure

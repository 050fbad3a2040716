"""Figures of what changes with the training step: the history of a run, and schedules."""

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.figure import Figure

LINES = ("-", "--", "-.", ":")  # curves differ by more than colour
# Panels of plot_history: y label, column, whether the axis is logarithmic.
HISTORY = (
    ("annealed loss (nats a row)", "loss", False),
    ("ELBO (nats a row)", "elbo", False),
    ("E[log p(x | z)] (nats a row)", "log_likelihood", False),
    ("KL (nats a row)", "kl", False),
    ("beta, or capacity (nats a row)", "anneal", False),
    ("gradient norm", "grad_norm", True),
)


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
            panel.set_ylim(*_middle(values))
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


def _middle(values: pd.Series) -> tuple[float, float]:
    """Returns axis limits around the middle 99% of the values, with a margin."""
    low, high = values.quantile([0.005, 0.995])
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin

"""Charts of a training and of a detector: history, scores, ranks, and a row's reasons."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import binom

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


def plot_ranks(counts: Mapping[str, np.ndarray]) -> Figure:
    """Draws a histogram of ranks for each coordinate of each site; all bars alike: calibrated.

    Dashed lines hold 99% of the bars of a calibrated guide.

    Args:
        counts: site -> simulations in each bin of ranks, ``(num_bins, dim)``.

    Example:
        >>> [axes.get_title() for axes in plot_ranks({"z": np.full((20, 2), 10)}).axes]
        ['z[0]', 'z[1]']
    """
    columns = {f"{n}[{j}]": bars for n, part in counts.items() for j, bars in enumerate(part.T)}
    figure = Figure(figsize=(2.4 * min(4, len(columns)), 2.2 * -(-len(columns) // 4)))
    figure.set_layout_engine("constrained")
    for number, (name, bars) in enumerate(columns.items(), start=1):
        axes = figure.add_subplot(-(-len(columns) // 4), min(4, len(columns)), number, title=name)
        axes.bar(range(len(bars)), bars, width=1.0, color="0.7")
        for bound in binom.ppf([0.005, 0.995], bars.sum(), 1 / len(bars)):
            axes.axhline(bound, color="black", linestyle="--", linewidth=0.8)
        axes.set(xlabel="bin of ranks", ylabel="simulations")
    return figure


def plot_coverage(frame: pd.DataFrame) -> Figure:
    """Draws how often truths are inside a guide's intervals, region by region of the rows.

    Grey bands hold 99% of the points of a calibrated guide; filled points have uniform ranks.

    Args:
        frame: as `Calibration.local_coverage` returns it.
    """
    groups = [*frame.groupby(["site", "coordinate"], sort=False)]
    width = min(4, len(groups))
    figure = Figure(figsize=(2.6 * width, 2.2 * -(-len(groups) // width)), layout="constrained")
    panels = figure.subplots(-(-len(groups) // width), width, sharey=True, squeeze=False)
    for axes, ((site, coordinate), part) in zip(panels.flat, groups, strict=False):
        count, nominal = part["simulations"].to_numpy(), part["nominal"].to_numpy()
        band = [binom.ppf(share, count, nominal) / count for share in (0.005, 0.995)]
        axes.fill_between(part["region"], *band, color="0.85")
        axes.plot(part["region"], part["coverage"], color="black", linewidth=0.8)
        uniform = part["p_value"] > 0.01 / len(frame)
        for some, inside in ((part[uniform], "black"), (part[~uniform], "white")):
            axes.plot(some["region"], some["coverage"], "o", color="black", mfc=inside)
        axes.set_xticks(part["region"], [f"{v:.3g}" for v in part["high"]], fontsize=7)
        axes.set(title=f"{site}[{coordinate}]", xlabel="rows up to", ylabel="coverage")
        axes.axhline(nominal[0], color="black", linestyle="--", linewidth=0.8)
    for axes in panels.flat[len(groups) :]:
        axes.remove()
    return figure


def plot_contributions(nats: pd.Series) -> Figure:
    """Draws what columns add to a row's -log p(x), the largest first, the smallest as one bar.

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
    axes.set(xlabel="contribution to -log p(x), nats")
    return figure


def plot_drift(columns: pd.DataFrame) -> Figure:
    """Draws how far columns have shifted, the farthest first; those that moved are dark.

    Args:
        columns: a row a column, as `Drift` has them: ``shift``, ``moved``, ``new``, ``missing``.

    Example:
        >>> shares = {"shift": [0.1, 0.4], "moved": [False, True], "missing": [0.0, 0.2]}
        >>> figure = plot_drift(pd.DataFrame(shares | {"new": 0.0}, index=["size", "kind"]))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['kind (20% missing)', 'size']
    """
    shown = columns.sort_values("shift", ascending=False).iloc[:MAX_BARS]
    figure = Figure(figsize=(5.8, 0.9 + 0.25 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shown)), shown["shift"], color=np.where(shown["moved"], "0.15", "0.75"))
    names = []
    for name, new, missing in zip(shown.index, shown["new"], shown["missing"], strict=True):
        told = [f"{v:.0%} {what}" for v, what in ((new, "new"), (missing, "missing")) if v >= 0.01]
        names.append(f"{name} ({', '.join(told)})" if told else str(name))
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlim=(0.0, None), xlabel="shift of the distribution, 0 to 1")
    moved = int(columns["moved"].sum())
    axes.set_title(f"{moved} of {len(columns)} columns moved (dark)")
    return figure

"""Figures of a detector's scores: their histogram with the threshold, and a row's reasons."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

MAX_BARS = 20  # columns drawn; the others are one bar
SPREADS = 2.0  # from the lowest score to the threshold: so much further, a row is far out


def plot_scores(anomaly_score: ArrayLike, threshold: float | None = None) -> Figure:
    """Draws a histogram of anomaly scores in nats, high = odd; rows beyond the threshold are dark.

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
    """Draws what each column adds to a row's oddness, the largest first; the smallest as one bar.

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
    axes.set(xlabel="contribution to oddness, nats")
    return figure

"""Figures of many runs side by side, from arrays alone; shades, dashes and hatches tell apart."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_vaeflow.plots.history import LINES

MAX_LINES = 8  # in a panel
SHADES = ("black", "0.55")
COLUMNS = 3  # of panels
KHAT_LIMIT = 0.7

Histories = Mapping[str, pd.DataFrame]
Rows = tuple[ArrayLike, ArrayLike]  # anomaly scores, and which rows are anomalies


def plot_dots(
    values: Mapping[str, Mapping[str, Sequence[float]]], *, label: str, title: str = ""
) -> Figure:
    """Draws a line a method with a dot a value, one marker a score; means are bars.

    Args:
        values: method -> score -> values, a seed each.

    Example:
        >>> figure = plot_dots({"base": {"importance": [0.9, 0.8]}}, label="AUROC")
        >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
        ['base']
    """
    scores = list(dict.fromkeys(score for of in values.values() for score in of))
    figure = Figure(figsize=(8.0, 1.1 + 0.27 * len(values)), layout="constrained")
    axes = figure.subplots()
    for number, score in enumerate(scores):
        shift = 0.16 * (number - (len(scores) - 1) / 2)
        fill = ("black", "white", "0.6")[number % 3]
        points = [
            (value, place + shift)
            for place, of in enumerate(values.values())
            for value in of.get(score, ())
        ]
        x, y = zip(*points, strict=True)
        axes.scatter(
            x, y, s=26, marker="os^"[number % 3], facecolor=fill, edgecolor="black",
            linewidth=0.8, label=score, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(values)), labels=list(values))
    axes.set(xlabel=label, ylim=(len(values) - 0.5, -0.5))
    axes.grid(axis="y", color="0.85")
    axes.set_title(title, loc="left")
    figure.legend(loc="outside lower right", ncols=len(scores), frameon=False)
    return figure


def plot_curves(panels: Mapping[str, Histories], *, column: str, label: str) -> Figure:
    """Draws a column of training histories: a panel a data set, a line a method, running means.

    An axis spans the last nine tenths of the steps: the first can dwarf all others.
    """
    figure, axes = _panels(len(panels))
    for panel, (title, histories) in zip(axes, panels.items(), strict=True):
        shown = dict(list(histories.items())[:MAX_LINES])
        late = []
        for number, (name, frame) in enumerate(shown.items()):
            window = max(1, len(frame) // 20)
            mean = frame[column].rolling(window, min_periods=1).mean()
            few = np.unique(np.linspace(0, len(frame) - 1, 200).astype(int))
            panel.plot(
                frame["step"].iloc[few], mean.iloc[few], LINES[number % 4], linewidth=1.2,
                color=SHADES[number // 4], label=name,
            )  # fmt: skip
            late.append(mean.iloc[len(mean) // 10 :])
        pooled = pd.concat(late)
        margin = 0.05 * (pooled.max() - pooled.min()) or 1.0
        panel.set(title=title, xlabel="step", ylabel=label)
        panel.set_ylim(pooled.min() - margin, pooled.max() + margin)
        panel.legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def plot_histograms(panels: Mapping[str, Rows], *, label: str) -> Figure:
    """Draws scores of inliers, filled, and of anomalies, hatched: a panel a method, shares of each.

    The axis spans the inliers' middle 98% and up to nine times that beyond, to nine tenths of the
    anomalies; what lies outside is counted in the outermost bars.
    """
    figure, axes = _panels(len(panels))
    for panel, (title, (scores, is_anomaly)) in zip(axes, panels.items(), strict=True):
        scores, odd = np.asarray(scores, dtype=float), np.asarray(is_anomaly, dtype=bool)
        scores, odd = scores[np.isfinite(scores)], odd[np.isfinite(scores)]
        inliers = scores[~odd] if (~odd).any() else scores
        low, high = np.quantile(inliers, [0.01, 0.99])
        reach = (high - low) or 1.0
        far = np.quantile(scores[odd], 0.9) if odd.any() else high
        edges = np.linspace(low - 0.1 * reach, np.clip(far, high + reach, high + 9 * reach), 41)
        looks: dict[str, dict] = {
            "inliers": {"color": "0.75"},
            "anomalies": {"histtype": "step", "color": "black", "hatch": "////"},
        }
        for name, values in zip(looks, (scores[~odd], scores[odd]), strict=True):
            if len(values):
                share = np.full(len(values), 100.0 / len(values))
                clipped = values.clip(edges[0], edges[-1])
                panel.hist(clipped, edges, weights=share, label=name, **looks[name])
        panel.set(title=title, xlabel=label, ylabel="% of the rows")
        panel.legend(fontsize=7, frameon=False)
    return figure


def plot_khats(khats: Mapping[str, ArrayLike]) -> Figure:
    """Draws each method's Pareto k-hat over rows: 5 to 95%, quartiles, median; dashed the limit."""
    figure = Figure(figsize=(8.0, 1.0 + 0.27 * len(khats)), layout="constrained")
    axes = figure.subplots()
    finite = [np.asarray(k, dtype=float)[np.isfinite(k)] for k in khats.values()]
    axes.boxplot(
        finite, orientation="horizontal", whis=(5, 95), showfliers=False,
        tick_labels=list(khats), medianprops={"color": "black", "linewidth": 2.0},
    )  # fmt: skip
    axes.axvline(KHAT_LIMIT, color="black", linestyle="--", linewidth=1.0)
    axes.invert_yaxis()
    axes.set(xlabel="Pareto k-hat of a row's weights (no unit; dashed: 0.7)")
    return figure


def plot_gaps(gaps: Mapping[str, tuple[float, float]]) -> Figure:
    """Draws each method's approximation gap, and its amortization gap after it, nats a row."""
    figure = Figure(figsize=(8.0, 1.1 + 0.27 * len(gaps)), layout="constrained")
    axes = figure.subplots()
    places, parts = range(len(gaps)), np.array(list(gaps.values()))
    axes.barh(places, parts[:, 0], color="0.35", label="approximation gap")
    axes.barh(
        places, parts[:, 1], left=parts[:, 0].clip(min=0.0), color="white", edgecolor="black",
        hatch="////", label="amortization gap",
    )  # fmt: skip
    axes.set_yticks(places, labels=list(gaps))
    axes.invert_yaxis()
    axes.set(xlabel="gap, nats a row")
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    return figure


def _panels(count: int) -> tuple[Figure, list]:
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.5 * columns, 2.7 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]

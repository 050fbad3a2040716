"""Samples in several dimensions, each dimension with each, beside samples of a reference."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

PANEL = 2.9  # inches
MIDDLE = (0.002, 0.998)  # of the samples: what the axes show


def plot_pairs(
    reference: np.ndarray, samples: Mapping[str, np.ndarray], *, max_dims: int = 3
) -> Figure:
    """Draws a column of panels a name: its samples as dots on the density of the reference's.

    Args:
        reference: ``(n, dim)``; the dimensions of its largest variances are shown, each with each;
            of one dimension, histograms.
        samples: title -> ``(m, dim)``.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(500, 4))
        >>> len(plot_pairs(draws, {"same": draws, "shifted": draws + 1.0}).axes)
        6
    """
    dims = np.sort(np.argsort(-reference.var(axis=0))[:max_dims])
    pairs: list[tuple[int, ...]] = list(combinations(dims.tolist(), 2)) or [(int(dims[0]),)]
    size = (PANEL * len(samples) + 0.4, PANEL * len(pairs) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(pairs), len(samples), sharex="row", sharey="row", squeeze=False)
    pooled = np.concatenate([reference, *samples.values()])
    for line, pair in zip(panels, pairs, strict=True):
        spans = [np.quantile(pooled[:, dim], MIDDLE) for dim in pair]
        for axes, (title, drawn) in zip(line, samples.items(), strict=True):
            if len(pair) == 1:
                bins = np.linspace(spans[0][0], spans[0][1], 60).tolist()
                axes.hist(reference[:, pair[0]], bins, density=True, color="0.75")
                axes.hist(drawn[:, pair[0]], bins, density=True, histtype="step", color="black")
            else:
                cells = [np.linspace(span[0], span[1], 45) for span in spans]
                axes.hist2d(*reference[:, pair].T, bins=cells, cmap="Greys")
                axes.plot(*drawn[:, pair].T, ".", markersize=1.2, color="tab:blue", alpha=0.5)
                axes.set(xlim=spans[0], ylim=spans[1], ylabel=f"$z_{{{pair[1] + 1}}}$")
            axes.set_xlabel(f"$z_{{{pair[0] + 1}}}$")
            if pair is pairs[0]:
                axes.set_title(title, fontsize=9, parse_math=False)
    return figure

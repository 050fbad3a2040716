"""Figure of densities of the plane side by side: a posterior beside what it should be."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from pyro_vaeflow.plots.maps import COLOURS


def plot_densities(rows: Mapping[str, Mapping[str, np.ndarray]], edges: np.ndarray) -> Figure:
    """Draws one row of panels a density, on one colour scale with one colour bar.

    Args:
        rows: row title -> panel title -> density per unit of area, ``(num_z1, num_z2)``, as
            ``numpy.histogram2d`` makes it; the rows' panels have the same titles. The first
            panels set the colour scale.
        edges: of the cells, the same along both axes, ``(num_z1 + 1,)``.

    Raises:
        ValueError: there is no panel, or a density does not fit the edges.
    """
    cells = (len(edges) - 1,) * 2
    panels = [density for row in rows.values() for density in row.values()]
    if not panels or any(density.shape != cells for density in panels):
        raise ValueError(f"each density must have shape {cells}, got {[p.shape for p in panels]}")
    titles = list(next(iter(rows.values())))
    figure = Figure(figsize=(1.55 * len(titles) + 0.9, 1.6 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), len(titles), squeeze=False, sharex=True, sharey=True)
    top = max(row[titles[0]].max() for row in rows.values())  # posteriors can have spikes
    for line, (name, row) in zip(grid, rows.items(), strict=True):
        for axes, (title, density) in zip(line, row.items(), strict=True):
            image = axes.pcolormesh(edges, edges, density.T, cmap=COLOURS, vmin=0, vmax=top)
            image.set_rasterized(True)
            axes.set_aspect("equal")
            if axes in grid[0]:
                axes.set_title(title)
            if axes in grid[-1]:
                axes.set_xlabel("$z_1$")
        line[0].set_ylabel(f"{name}\n$z_2$")
    figure.colorbar(image, ax=grid, label="density, per unit of area", shrink=0.8)
    return figure

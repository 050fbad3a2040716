"""Figures of the plane: points, and score maps on one colour scale.

Each function returns a ``matplotlib.figure.Figure`` made without pyplot, so nothing stays open and
no display is needed: ``figure.savefig(path)``.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import AsinhLocator, MaxNLocator
from numpy.typing import ArrayLike

from pyro_vaeflow.validation import check_number

ScoreMap = tuple[ArrayLike, ArrayLike, ArrayLike]

COLOURS = "cividis"  # its lightness rises steadily: readable in grey and to the colour-blind
PANEL = (3.2, 2.9)  # inches
REFERENCE = "true -log p(x)"


def plot_points(points: ArrayLike, *, title: str = "") -> Figure:
    """Draws points of the plane, ``(num_points, 2)``.

    Raises:
        ValueError: `points` has another shape.

    Example:
        >>> plot_points([[0.0, 1.0], [1.0, 0.0]], title="Two points").axes[0].get_title()
        'Two points'
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must have shape (num_points, 2), got {points.shape}")
    figure, (axes,) = _panels(1)
    axes.plot(*points.T, ".", markersize=1.5, color="black", rasterized=True)
    _plane(axes, title)
    return figure


def plot_score_maps(
    maps: Mapping[str, ScoreMap],
    *,
    reference: ScoreMap | None = None,
    label: str = "A(x), nats",
    limits: tuple[float, float] | None = None,
    linear_width: float | None = None,
) -> Figure:
    """Draws maps of a score over the plane side by side, on one colour scale with one colour bar.

    Contour lines stand at the colour bar's ticks, so panels can be compared in grey as well.

    Args:
        maps: title -> ``(xx, yy, values)`` as of ``numpy.meshgrid``, each ``(num_y, num_x)``; xx
            and yy can also be the two axes, ``(num_x,)`` and ``(num_y,)``.
        reference: one map more, drawn last: the true -log p(x), what the others should be.
        label: what is drawn and its unit, for the colour bar.
        limits: the scale's lowest and highest value; by default those of all panels together.
            Values outside take the colour of the nearer end.
        linear_width: with it the scale is linear up to about this size and logarithmic beyond, for
            scores that span decades.

    Raises:
        ValueError: no map, shapes that do not fit, no finite value, limits out of order, or a
            linear width that is not positive.

    Example:
        >>> xx, yy = np.meshgrid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
        >>> figure = plot_score_maps({"a": (xx, yy, xx**2), "b": (xx, yy, yy)})
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['a', 'b']
    """
    panels = dict(maps) | ({} if reference is None else {REFERENCE: reference})
    grids = {title: _grid(title, panel) for title, panel in panels.items()}
    span = _span(grids)
    low, high = span if limits is None else limits
    norm, ticks = _scale(low, high, linear_width)
    figure, axes = _panels(len(grids))
    for panel, (title, (xx, yy, values)) in zip(axes, grids.items(), strict=True):
        image = panel.pcolormesh(xx, yy, values, cmap=COLOURS, norm=norm, rasterized=True)
        crossed = ticks[(ticks > values.min()) & (ticks < values.max())]
        if len(crossed):  # matplotlib warns of levels that a map does not reach
            panel.contour(xx, yy, values, levels=crossed, colors="black", linewidths=0.4)
        _plane(panel, title)
    extend = ("neither", "min", "max", "both")[(span[0] < low) + 2 * (span[1] > high)]
    figure.colorbar(image, ax=axes, label=label, ticks=ticks, format="%g", extend=extend)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def _plane(axes: Axes, title: str) -> None:
    axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")


def _grid(title: str, panel: ScoreMap) -> tuple[np.ndarray, np.ndarray, np.ma.MaskedArray]:
    xx, yy = np.asarray(panel[0]), np.asarray(panel[1])
    values = np.ma.masked_invalid(np.asarray(panel[2], dtype=float))
    axes = (values.shape[1:], values.shape[:1])
    if values.ndim != 2 or (xx.shape, yy.shape) not in ((values.shape,) * 2, axes):
        raise ValueError(
            f"map {title!r}: xx, yy and values must be of one shape (num_y, num_x), or xx and yy "
            f"its axes; got {xx.shape}, {yy.shape}, {values.shape}"
        )
    return xx, yy, values


def _span(grids: Mapping[str, tuple[np.ndarray, np.ndarray, np.ma.MaskedArray]]) -> tuple:
    """The lowest and the highest finite value of all panels."""
    finite = [values.compressed() for *_, values in grids.values()]
    if not sum(map(len, finite)):
        raise ValueError(f"no finite value to draw in the maps {list(grids)}")
    pooled = np.concatenate(finite)
    return pooled.min(), pooled.max()


def _scale(low: float, high: float, linear_width: float | None) -> tuple[Normalize, np.ndarray]:
    """Returns the colour scale and its round ticks."""
    if not low <= high:
        raise ValueError(f"limits must be (lowest, highest), got {(low, high)}")
    if linear_width is None:
        return Normalize(low, high), np.asarray(MaxNLocator(8).tick_values(low, high))
    check_number("linear_width", linear_width, above=0.0)
    ticks = np.asarray(AsinhLocator(linear_width).tick_values(low, high))
    # The locator counts decades down to zero, but its scale is linear there: labels would collide.
    apart = (np.abs(ticks) >= linear_width) | (ticks == 0)
    return AsinhNorm(linear_width, low, high), ticks[apart]

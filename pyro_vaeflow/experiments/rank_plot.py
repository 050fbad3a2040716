"""A figure of average ranks: the critical-difference diagram of Demsar (2006)."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from pyro_vaeflow.experiments.ranks import indistinct

LINE = 0.22  # inches between two names


def plot_ranks(average: Mapping[str, float], difference: float) -> Figure:
    """Draws methods at their average ranks, the best on the left, and joins those that are alike.

    A thick line joins ranks that lie within one critical difference; its length stands on top.

    Args:
        average: method -> average rank, 1 = best.
        difference: the critical difference, in ranks.

    Raises:
        ValueError: fewer than two methods.

    Example:
        >>> figure = plot_ranks({"a": 1.2, "b": 2.1, "c": 2.7}, 0.8)
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['a  1.20', 'b  2.10', '2.70  c', 'critical difference 0.80']
    """
    if len(average) < 2:
        raise ValueError(f"average must hold at least two methods, got {list(average)}")
    ordered = sorted(average.items(), key=lambda item: item[1])
    left = (len(ordered) + 1) // 2
    groups = indistinct(average, difference)
    first = 0.8 + 0.3 * len(groups)  # the names begin below the thick lines
    depth = first + left
    figure = Figure(figsize=(8.0, 0.7 + LINE * (depth + 1.5)), layout="constrained")
    axes = figure.add_subplot()
    low, high = 1.0, float(len(ordered))
    margin = 0.015 * (high - low)
    axes.set(xlim=(low, high), ylim=(depth, -1.6))
    axes.spines[["left", "right", "bottom"]].set_visible(False)
    axes.xaxis.set_ticks_position("top")
    axes.set_yticks([])
    axes.set_title("average rank (1 = best)", fontsize=10)
    for place, (name, rank) in enumerate(ordered):
        best = place < left
        y = first + (place if best else len(ordered) - 1 - place)
        side, align = (low - margin, "right") if best else (high + margin, "left")
        stem = axes.plot([rank, rank, side], [-1.6, y, y], color="grey", linewidth=0.7)
        stem[0].set_clip_on(False)
        text = f"{name}  {rank:.2f}" if best else f"{rank:.2f}  {name}"
        axes.text(
            side + (-margin if best else margin) / 3, y, text, ha=align, va="center", fontsize=8
        )
    axes.plot([low, low + difference], [-0.8, -0.8], color="black", linewidth=1.5)
    label = axes.text(
        low + difference + margin,
        -0.8,
        f"critical difference {difference:.2f}",
        va="center",
        fontsize=8,
    )
    label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    for place, (begin, end) in enumerate(groups):
        y = 0.25 + 0.3 * place
        span = [begin - margin / 4, end + margin / 4]
        axes.plot(span, [y, y], color="black", linewidth=3, solid_capstyle="butt")
    return figure

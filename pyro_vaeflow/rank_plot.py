"""A figure of average ranks: the critical-difference diagram of Demsar (2006)."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from pyro_vaeflow.ranks import indistinct

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
        ['critical difference 0.80', 'a  1.20', 'b  2.10', '2.70  c']
    """
    if len(average) < 2:
        raise ValueError(f"average must hold at least two methods, got {list(average)}")
    ordered = sorted(average.items(), key=lambda item: item[1])
    left = (len(ordered) + 1) // 2
    groups = indistinct(average, difference)
    first = 0.6 + 0.25 * len(groups)  # the names begin below the thick lines
    depth = first + left
    figure = Figure(figsize=(8.0, 0.7 + LINE * (depth + 1.5)), layout="constrained")
    axes = figure.add_subplot()
    low, high = 1.0, float(len(ordered))
    margin = 0.02 * (high - low)
    axes.set(xlim=(low - margin, high + margin), ylim=(depth, -1.6))
    axes.spines[["left", "right", "bottom"]].set_visible(False)
    axes.xaxis.set_ticks_position("top")
    axes.set_yticks([])
    axes.set_title("average rank (1 = best)", fontsize=10)
    axes.plot([low, low + difference], [-1.0, -1.0], color="black", linewidth=2)
    axes.text(low + difference + margin, -1.0, f"critical difference {difference:.2f}", va="center")
    for place, (begin, end) in enumerate(groups):
        y = 0.3 + 0.25 * place
        axes.plot([begin - margin / 4, end + margin / 4], [y, y], color="black", linewidth=3)
    for place, (name, rank) in enumerate(ordered):
        best = place < left
        y = first + (place if best else len(ordered) - 1 - place) + 0.4
        side = low if best else high
        axes.plot([rank, rank, side], [-1.6 + 1.6, y, y], color="grey", linewidth=0.7)
        text = f"{name}  {rank:.2f}" if best else f"{rank:.2f}  {name}"
        axes.text(side, y, text, ha="left" if best else "right", va="bottom", fontsize=8)
    return figure

"""Effects in words and numbers: what a page may say of a mean and its interval."""

from textwrap import fill

import numpy as np
import pandas as pd

from pyro_vaeflow.experiments.effects import Effect

VERBS = {1: "raises", 0: "does not measurably change", -1: "lowers"}
VERDICTS = {1: "supported", 0: "not shown", -1: "contradicted"}


def verb(found: Effect) -> str:
    """What a flow does to a measure, in words that the interval allows."""
    if np.isnan(found.low):
        return "changes (on too few data sets and seeds to say which way)"
    return VERBS[found.sign]


def verdict(found: Effect) -> str:
    """What becomes of a hypothesis that expects a rise."""
    return "too early to say" if np.isnan(found.low) else VERDICTS[found.sign]


def said(found: Effect, factor: float = 1.0, digits: int = 2) -> str:
    """An effect as text, with its interval if it has one.

    Example:
        >>> said(Effect(0.012, -0.001, 0.02), factor=100, digits=1)
        '+1.2 (-0.1 to 2.0)'
    """
    mean, low, high = (factor * value for value in (found.mean, found.low, found.high))
    interval = f" ({low:.{digits}f} to {high:.{digits}f})" if np.isfinite(low) else ""
    return f"{mean:+.{digits}f}{interval}"


def over_sets(table: pd.DataFrame, measure: str) -> float:
    """The mean over data sets of the mean over their runs."""
    return float(table.groupby("dataset")[measure].mean().mean())


def wrapped(text: str) -> str:
    """Paragraphs in lines of at most 100 characters; tables, headings and code as they are."""
    blocks = [
        block
        if block.startswith(("|", "#", "!", "`", "-"))
        else fill(" ".join(block.split()), 100, break_long_words=False, break_on_hyphens=False)
        for block in text.strip().split("\n\n")
    ]
    return "\n\n".join(blocks) + "\n"

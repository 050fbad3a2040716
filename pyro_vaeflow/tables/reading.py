"""A table read aloud: what its columns were taken for, and what of later rows they do not know."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.validation import warn

MOST = 0.5  # of the entries of a column: above it something is wrong with the column, not the rows
FEWEST = 20  # rows, or it may be chance


class Shares(NamedTuple):
    """The shares of a column's entries that are new to it, of those there, or missing."""

    name: str
    new: float
    missing: float
    strange: str  # what is wrong with most entries; empty if nothing is
    is_time: bool  # which goes on, and is new to every model

    @classmethod
    def of(
        cls, column: Column, values: pd.Series, is_new: np.ndarray, is_missing: np.ndarray
    ) -> Self:
        """Shares of `values` ``(num_data,)``, whose new and missing entries two masks pick."""
        missing = float(is_missing.mean()) if len(values) else 0.0
        new = float(is_new.sum() / max(1, (~is_missing).sum()))
        what, is_time = "", column.part == "elapsed"
        if len(values) >= FEWEST and new > MOST + column.unseen / 2:
            example = str(values.iloc[int(is_new.argmax())])[:60]
            what = f"{new:.0%} of the entries, {example!r} say, are " + (
                f"never seen in training ({column.part or 'level'})"
                if column.num_levels
                else f"out of training's range, {limits(column)}"
            )
        elif len(values) >= FEWEST and missing > MOST + column.missing / 2:
            what = (
                f"{missing:.0%} of the entries are missing, {column.missing:.0%} were in training"
            )
        how = "taken as the last or first of it" if is_time else "scores say little there"
        strange = what and f"column {column.name!r}: {what}: {how}"
        return cls(column.name, new, missing, strange, is_time)


def warn_of(shares: Sequence[Shares]) -> None:
    """Warns of columns most of whose entries are new or missing: rows are rarely at fault."""
    if texts := [share.strange for share in shares if share.strange]:
        warn("; ".join(texts))


def limits(column: Column) -> str:
    """The range of a column of numbers, or of dates."""
    bounds = [np.nan if bound is None else bound for bound in (column.low, column.high)]
    if column.part:
        return " to ".join(str(pd.Timestamp(v, unit="s")).removesuffix(" 00:00:00") for v in bounds)
    return f"{bounds[0]:g} to {bounds[1]:g}"


def read_aloud(names: Sequence[Any], columns: Iterable[Column]) -> pd.DataFrame:
    """What each column was taken for: ``kind``, what it ``holds``, ``missing`` share, ``why``."""
    rows: dict[str, dict[str, Any]] = {}
    for column in columns:
        if column.name in rows:  # the other parts of a date
            rows[column.name]["kind"] += f", {column.part}"
            continue
        holds = limits(column) if column.low is not None else ""
        if levels := column.levels or [f"{low:g}" for low in column.lows or ()]:
            holds = f"{len(levels)} levels: {', '.join(levels)}"
        rows[column.name] = {
            "kind": f"date: {column.part}" if column.part else column.kind,
            "holds": holds if len(holds) < 50 else holds[:47] + "...",
            "missing": column.missing,
            "why": column.why,
        }
    return pd.DataFrame([rows[str(name)] for name in names], index=pd.Index(names))

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
    """How many entries of a column are new to it or missing, among how many rows."""

    name: str
    what: str  # new entries are
    new: int
    missing: int
    num_data: int
    example: str
    usual_new: float  # the share in training, of levels that were not learned
    usual_missing: float
    is_time: bool  # which goes on, and is new to every model

    @classmethod
    def of(
        cls, column: Column, values: pd.Series, is_new: np.ndarray, is_missing: np.ndarray
    ) -> Self:
        """Counts the entries of `values` ``(num_data,)`` that two masks pick."""
        example = str(values.iloc[int(is_new.argmax())])[:60] if is_new.any() else ""
        is_time, what = (
            column.part == "elapsed",
            f"never seen in training ({column.part or 'level'})",
        )
        if not column.num_levels:
            what = f"out of training's range, {limits(column)}"
        counts = int(is_new.sum()), int(is_missing.sum()), len(values)
        return cls(column.name, what, *counts, example, column.unseen, column.missing, is_time)

    @property
    def text(self) -> str:
        """What is wrong with most entries; empty if nothing is."""
        if self.num_data < FEWEST:
            return ""
        missing = self.missing / self.num_data
        new = self.new / max(1, self.num_data - self.missing)
        if new > MOST + self.usual_new / 2:
            how = "taken as the last or first of it" if self.is_time else "scores say little there"
            return (
                f"column {self.name!r}: {new:.0%} of the entries, {self.example!r} say, are "
                f"{self.what}: {how}"
            )
        if missing > MOST + self.usual_missing / 2:
            return (
                f"column {self.name!r}: {missing:.0%} of the entries are missing, "
                f"{self.usual_missing:.0%} were in training: scores say little there"
            )
        return ""


def strange_columns(chunks: Sequence[Sequence[Shares]]) -> tuple[Shares, ...]:
    """Columns most of whose entries are new or missing: often not the rows are at fault.

    Args:
        chunks: of one table, what of its columns is new or missing.
    """
    strange: dict[str, Shares] = {}
    for of_column in zip(*chunks, strict=True):
        counts = {n: sum(getattr(s, n) for s in of_column) for n in ("new", "missing", "num_data")}
        example = next((share.example for share in of_column if share.example), "")
        if (total := of_column[0]._replace(example=example, **counts)).text:
            strange.setdefault(total.text, total)
    return tuple(strange.values())


def warn_of(shares: Sequence[Shares]) -> None:
    """Warns of `strange_columns`, if there are some."""
    if strange := strange_columns([shares]):
        warn("; ".join(share.text for share in strange))


def limits(column: Column) -> str:
    """The range of a column of numbers, or of dates."""
    bounds = [np.nan if bound is None else bound for bound in (column.low, column.high)]
    if column.part:
        return " to ".join(str(pd.Timestamp(v, unit="s")).removesuffix(" 00:00:00") for v in bounds)
    return f"{bounds[0]:g} to {bounds[1]:g}"


def read_aloud(names: Sequence[Any], columns: Iterable[Column]) -> pd.DataFrame:
    """What each column was taken for: ``kind``, what it ``holds``, ``missing`` share, ``why``.

    Args:
        names: of the table's columns, the index of the frame.
        columns: what was learned; several of a date.
    """
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

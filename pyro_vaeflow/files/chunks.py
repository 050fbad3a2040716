"""Chunks of a table in a file: where one lies, what was read of it, and rows that were not."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file; small enough to be sent to any process that sees the file.

    Args:
        name: the path below what was given as input: what the output calls the file.
        row: the number of the first row, from 1; row n of a csv file is its line n + 1.
        start, stop: of a csv file: the bytes from `start` up to `stop`.
    """

    path: str
    name: str
    row: int
    num_rows: int
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Reject:
    """A row that could not be used, why, and what stands in the column or on the whole line."""

    row: int
    reason: str
    column: str | None = None
    value: str | None = None


@dataclass(frozen=True)
class Rows:
    """What was read of a chunk: a `pyarrow.Table`, its rows' numbers, and the rows left out."""

    table: Any
    numbers: np.ndarray
    rejects: list[Reject]

"""A piece of a table in a file: where it lies, what was read of it, and which rows were not."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file; small enough to be sent to any process that sees the file."""

    path: str
    name: str
    """The path below what was given as input: what the output calls the file."""
    row: int
    """The number of the first row, from 1; row n of a csv file is its line n + 1."""
    num_rows: int
    start: int = 0
    """Of a csv file: the bytes from `start` up to `stop`."""
    stop: int = 0


@dataclass(frozen=True)
class Reject:
    """A row that could not be used, and why."""

    row: int
    reason: str
    column: str | None = None
    value: str | None = None
    """What stands in the column, or the whole line where it cannot be taken apart."""


@dataclass(frozen=True)
class Rows:
    """What was read of a chunk: a `pyarrow.Table`, each row's number, and the rows left out."""

    table: Any
    places: np.ndarray
    rejects: list[Reject]

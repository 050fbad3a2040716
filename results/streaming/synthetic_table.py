"""Synthetic table: an id, five numbers of two factors, and a category, of any number of rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

ROWS_AT_ONCE = 100_000
NUM_NUMBERS = 5
SCHEMA = pa.schema(
    [("id", pa.int64()), *((f"x{i}", pa.float64()) for i in range(NUM_NUMBERS))]
    + [("kind", pa.string())]
)
WRITERS = {".csv": pa.csv.CSVWriter, ".parquet": pq.ParquetWriter}


def pieces(num_rows: int, seed: int = 0) -> Iterator[pa.Table]:
    """The table, `ROWS_AT_ONCE` rows at a time; every ten-thousandth row is anomalous."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(2, NUM_NUMBERS))
    for start in range(0, num_rows, ROWS_AT_ONCE):
        ids = np.arange(start, min(start + ROWS_AT_ONCE, num_rows))
        factors = rng.normal(size=(len(ids), 2))
        numbers = factors @ loadings + 0.2 * rng.normal(size=(len(ids), NUM_NUMBERS))
        anomalous = ids % 10_000 == 0
        numbers[anomalous] = rng.normal(scale=4.0, size=(anomalous.sum(), NUM_NUMBERS))
        kind = np.array(list("abcde"))[np.digitize(factors[:, 0], [-1.0, 0.0, 1.0, 2.0])]
        frame = pd.DataFrame(numbers.round(6), columns=[f"x{i}" for i in range(NUM_NUMBERS)])
        yield pa.table({"id": ids, **frame, "kind": kind}, SCHEMA)


def write_table(path: Path, num_rows: int) -> None:
    """Writes the table as csv or Parquet, as the file's name ends."""
    with WRITERS[path.suffix](path, SCHEMA) as writer:
        for piece in pieces(num_rows):
            writer.write_table(piece)

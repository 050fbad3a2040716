"""Parquet files in chunks of rows, wherever their row groups end."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyro_vaeflow.files.chunks import Chunk, Rows
from pyro_vaeflow.validation import ConfigError

IS_TYPED = True  # a file says which columns are numbers


def schema(path: Path) -> pa.Schema:
    """The file's names and types.

    Raises:
        ConfigError: it is no Parquet file.
    """
    try:
        return pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} is no Parquet file: {error}") from error


def chunks(path: Path, name: str, chunk_rows: int) -> Iterator[Chunk]:
    """Cuts a file into chunks of so many rows."""
    num_rows = pq.read_metadata(path).num_rows
    for row in range(1, num_rows + 1, chunk_rows):
        yield Chunk(str(path), name, row, min(chunk_rows, num_rows + 1 - row))


def read(chunk: Chunk, columns: Sequence[str]) -> Rows:
    """The chunk's rows; the row groups that have some are decoded in batches, up to the last."""
    first, stop = chunk.row - 1, chunk.row - 1 + chunk.num_rows  # from 0
    with pq.ParquetFile(chunk.path) as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.flatnonzero((ends > first) & (ends - sizes < stop))
        start, batches = ends[groups[0]] - sizes[groups[0]], []
        options = {"row_groups": groups.tolist(), "columns": list(columns), "use_threads": False}
        for batch in file.iter_batches(chunk.num_rows, **options):
            batches.append(batch.slice(max(first - start, 0), max(stop - max(first, start), 0)))
            start += len(batch)
            if start >= stop:
                break
    table = pa.Table.from_batches(batches)
    return Rows(table, chunk.row + np.arange(table.num_rows), [])

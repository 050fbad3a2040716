"""Parquet files in chunks of rows, wherever their row groups end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    with _of_file(path):
        return pq.read_schema(path)


def chunks(path: Path, name: str, chunk_rows: int) -> Iterator[Chunk]:
    """Cuts a file into chunks of so many rows."""
    with _of_file(path):
        num_rows = pq.read_metadata(path).num_rows
    for row in range(1, num_rows + 1, chunk_rows):
        yield Chunk(str(path), name, row, min(chunk_rows, num_rows + 1 - row))


def read(chunk: Chunk, columns: Sequence[str]) -> Rows:
    """The chunk's rows; the row groups that have some are decoded in batches, up to the last.

    Raises:
        ConfigError: the file is damaged.
    """
    with _of_file(chunk.path):
        table = _read(chunk, columns)
    return Rows(table, chunk.row + np.arange(table.num_rows), [])


@contextmanager
def _of_file(path: Path | str) -> Iterator[None]:
    """Errors of a damaged file as one that names it; those of the disk as they are."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ConfigError(f"{path} is no Parquet file that can be read: {error}") from error


def _read(chunk: Chunk, columns: Sequence[str]) -> pa.Table:
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
    table.validate(full=True)  # texts that are no UTF-8, say
    return table

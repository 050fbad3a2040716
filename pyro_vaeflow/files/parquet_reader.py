"""Parquet files in chunks of rows, by pyarrow's datasets, one row group after another."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from pyro_vaeflow.files.chunks import Chunk, Rows
from pyro_vaeflow.validation import ConfigError


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
    """Cuts a file into chunks of so many rows, wherever its row groups end."""
    num_rows = pq.read_metadata(path).num_rows
    for row in range(1, num_rows + 1, chunk_rows):
        yield Chunk(str(path), name, row, min(chunk_rows, num_rows + 1 - row))


def read(chunk: Chunk, columns: Sequence[str]) -> Rows:
    """The chunk's rows; the row groups that have some are decoded in batches, up to the last."""
    file = ds.ParquetFileFormat().make_fragment(chunk.path, fs.LocalFileSystem())
    stop, start, groups = 1, 1, []
    for group in file.row_groups:
        start, stop = stop, stop + group.num_rows
        if start < chunk.row + chunk.num_rows and stop > chunk.row:
            groups.append((group.id, start))
    scanner = file.subset(row_group_ids=[number for number, _ in groups]).scanner(
        columns=list(columns), batch_size=chunk.num_rows, batch_readahead=1, use_threads=False
    )
    found, row = [], groups[0][1]
    for batch in scanner.to_batches():
        low = max(chunk.row - row, 0)
        found.append(batch.slice(low, max(chunk.row + chunk.num_rows - row - low, 0)))
        row += len(batch)
        if row >= chunk.row + chunk.num_rows:
            break
    table = pa.Table.from_batches(found)
    return Rows(table, chunk.row + np.arange(table.num_rows), [])

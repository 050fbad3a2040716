"""Files of a table, csv or Parquet: which they are, and their rows, read chunk after chunk.

`pyarrow.dataset` guesses the types of a csv file and stops at the first value that does not fit, so
lines go to pyarrow's parser as text, chunk by chunk, and `pyro_vaeflow.files.parsing` makes
numbers of them. A row is a line: a line break inside quotes is an error of two rows. A line that is
no row costs only itself.
"""

import csv
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pyro_vaeflow.validation import ConfigError

BOM = b"\xef\xbb\xbf"
SHOWN = 1000  # characters of a line that is rejected


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


class Csv:
    """A file of lines, the first with the columns' names; all columns are text."""

    is_typed = False  # a file does not say which columns are numbers

    @staticmethod
    def schema(path: Path) -> pa.Schema:
        """The names of the header; a ConfigError if none can be read."""
        with path.open("rb") as file:
            line = file.readline().removeprefix(BOM)
        try:
            names = next(csv.reader([line.decode()], strict=True), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path} has no header line: {error}") from error
        if not names:
            raise ConfigError(f"{path} has no header line: the first one is blank")
        return pa.schema([(name, pa.string()) for name in names])

    @staticmethod
    def chunks(path: Path, name: str, chunk_rows: int) -> Iterator[Chunk]:
        """Cuts a file into chunks of so many lines, in one pass."""
        with path.open("rb") as file:
            start, row = len(file.readline()), 1
            while lines := list(islice(file, chunk_rows)):
                stop = start + sum(map(len, lines))
                yield Chunk(str(path), name, row, len(lines), start, stop)
                start, row = stop, row + len(lines)

    @classmethod
    def read(cls, chunk: Chunk, columns: Sequence[str]) -> Rows:
        """The chunk's rows; blank lines are no rows, lines of another number of fields rejects.

        A part that does not parse to one row a line is halved until the lines that are to blame are
        alone: what becomes of a line does not depend on its neighbours.
        """
        names = cls.schema(Path(chunk.path)).names
        with open(chunk.path, "rb") as file:
            file.seek(chunk.start)
            content = file.read(chunk.stop - chunk.start)
        lines = [line.removesuffix(b"\r") for line in content.split(b"\n")]
        # The parser would take a return for the end of a row.
        reasons = {j: "a return inside the line" for j, line in enumerate(lines) if b"\r" in line}
        rows = [j for j, line in enumerate(lines) if line.strip() and j not in reasons]
        tables, good, parts = [_parse([], names, columns)], [], [rows]
        while parts:
            part = parts.pop()
            try:
                table = _parse([lines[j] for j in part], names, columns)
                reason = "quotes are not closed"
            except pa.ArrowInvalid as error:
                table, reason = None, str(error).partition(": ")[2].removeprefix("Row #1: ")
            if table is not None and table.num_rows == len(part):
                tables.append(table)
                good += part
            elif len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
            else:
                reasons[part[0]] = reason.partition(f": {_shown(lines[part[0]])}")[0]
        rejects = [Reject(chunk.row + j, why, value=_shown(lines[j])) for j, why in reasons.items()]
        return Rows(pa.concat_tables(tables), chunk.row + np.array(good, dtype=np.int64), rejects)


class Parquet:
    """A file with types, read in chunks of rows, wherever its row groups end."""

    is_typed = True

    @staticmethod
    def schema(path: Path) -> pa.Schema:
        """The file's names and types; a ConfigError if it is no Parquet file."""
        try:
            return pq.read_schema(path)
        except pa.ArrowInvalid as error:
            raise ConfigError(f"{path} is no Parquet file: {error}") from error

    @staticmethod
    def chunks(path: Path, name: str, chunk_rows: int) -> Iterator[Chunk]:
        """Cuts a file into chunks of so many rows."""
        num_rows = pq.read_metadata(path).num_rows
        for row in range(1, num_rows + 1, chunk_rows):
            yield Chunk(str(path), name, row, min(chunk_rows, num_rows + 1 - row))

    @staticmethod
    def read(chunk: Chunk, columns: Sequence[str]) -> Rows:
        """The chunk's rows; only the row groups that have some are decoded, batch by batch."""
        first, stop = chunk.row - 1, chunk.row - 1 + chunk.num_rows  # from 0
        with pq.ParquetFile(chunk.path) as file:
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = np.flatnonzero((ends > first) & (ends - sizes < stop))
            start, batches = ends[groups[0]] - sizes[groups[0]], []
            options = {"row_groups": groups.tolist(), "columns": list(columns)}
            for batch in file.iter_batches(chunk.num_rows, use_threads=False, **options):
                batches.append(batch.slice(max(first - start, 0), max(stop - max(first, start), 0)))
                start += len(batch)
                if start >= stop:
                    break
        table = pa.Table.from_batches(batches)
        return Rows(table, chunk.row + np.arange(table.num_rows), [])


# By suffix.
FORMATS: dict[str, type[Csv] | type[Parquet]] = {".csv": Csv, ".parquet": Parquet}


def find_files(data: str) -> dict[str, Path]:
    """The files of a path, a folder (and those inside it) or a glob, by name, in order of name.

    Raises:
        ConfigError: there is none, or they are not all of one known kind.
    """
    root = Path(data)
    if root.is_dir():
        # Hidden files, and those that other tools leave beside a data set, are not part of it.
        names = [path.relative_to(root) for path in root.rglob("*") if path.suffix in FORMATS]
        paths = [root / n for n in names if not any(part[0] in "._" for part in n.parts)]
    else:
        paths = [root] if root.is_file() else [Path(p) for p in glob.glob(data, recursive=True)]
    files = sorted(path for path in paths if path.is_file())
    if not files:
        raise ConfigError(f"no csv or Parquet file in {data!r}; give a file, a folder or a glob")
    suffixes = {path.suffix for path in files}
    if len(suffixes) > 1 or not suffixes <= FORMATS.keys():
        raise ConfigError(
            f"{data!r} has files of {', '.join(sorted(suffixes))}; give those of one kind, "
            f"{' or '.join(FORMATS)}"
        )
    if not root.is_dir():
        root = Path(os.path.commonpath([path.parent for path in files]))
    return {path.relative_to(root).as_posix(): path for path in files}


def read_schemas(files: Mapping[str, Path], columns: Sequence[str] = ()) -> dict[str, Any]:
    """The schema of each file, all of which must have the columns.

    Raises:
        ConfigError: a file lacks a column or has one twice.
    """
    schemas = {name: FORMATS[path.suffix].schema(path) for name, path in files.items()}
    for name, schema in schemas.items():
        if missing := [column for column in columns if column not in schema.names]:
            raise ConfigError(f"{files[name]} lacks the columns {missing}; it has {schema.names}")
        if twice := [column for column in columns if schema.names.count(column) > 1]:
            raise ConfigError(f"{files[name]} has the columns {twice} more than once")
    return schemas


def chunks_of(files: Mapping[str, Path], chunk_rows: int) -> Iterator[Chunk]:
    """All chunks of all files, in order."""
    for name, path in files.items():
        yield from FORMATS[path.suffix].chunks(path, name, chunk_rows)


def read_chunk(chunk: Chunk, columns: Sequence[str]) -> Rows:
    """The rows of a chunk, with the columns that are named."""
    return FORMATS[Path(chunk.path).suffix].read(chunk, columns)


def _shown(line: bytes) -> str:
    return line.decode(errors="replace").strip()[:SHOWN]


def _parse(lines: Sequence[bytes], names: Sequence[str], columns: Sequence[str]) -> pa.Table:
    # A row more, which quotes that are left open would swallow.
    data = b"\n".join([*lines, b",".join([b"x"] * len(names)), b""])
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        pyarrow.csv.ReadOptions(
            column_names=list(names), use_threads=False, block_size=len(data) + 1
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=True,
        ),
    )
    return table.slice(0, table.num_rows - 1)

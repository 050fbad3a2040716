"""Readers of a file, csv or Parquet: its columns, and its rows chunk after chunk.

`pyarrow.dataset` guesses the types of a csv file and stops at the first value that does not fit, so
lines go to pyarrow's parser as text, chunk by chunk, and `pyro_vaeflow.files.parsing` makes
numbers of them. A row is a line, or some of them where quotes hold line breaks. A line that is no
row costs only itself.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pyro_vaeflow.files.csv_header import UTF_8, Header, lines_of, opened, read_header, reading
from pyro_vaeflow.validation import warn

SHOWN = 1000  # characters of a line that is rejected
MAX_LINES = 100  # of one row


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
    """A file of lines, the first with the columns' names; all columns are text.

    Fields are separated by commas, semicolons, tabs or bars: by what the first lines agree on.
    Texts are in UTF-8; in Windows-1252 where the file's beginning is none and nothing else.
    """

    is_typed = False  # a file does not say which columns are numbers

    @staticmethod
    def schema(path: Path) -> pa.Schema:
        """The names of the header; a ConfigError if none can be read."""
        return pa.schema([(name, pa.string()) for name in read_header(path).names])

    @staticmethod
    def chunks(path: Path, name: str, chunk_rows: int) -> Iterator[Chunk]:
        """Cuts a file into chunks of so many rows, in one pass; `num_rows` counts their lines."""
        header = read_header(path)
        if header.separator != ",":
            warn(f"{path} has {header.separator!r} between its fields")
        if header.encoding != UTF_8:
            warn(f"{path} is not encoded in UTF-8: it is read as {header.encoding}")
        with opened(path) as file:
            start, row = len(file.read(header.size)), 1
            rows = _rows_of(lines_of(file, path), header)
            while lines := list(chain.from_iterable(islice(rows, chunk_rows))):
                stop = start + sum(map(len, lines))
                yield Chunk(str(path), name, row, len(lines), start, stop)
                start, row = stop, row + len(lines)

    @classmethod
    def read(cls, chunk: Chunk, columns: Sequence[str]) -> Rows:
        """The chunk's rows; blank lines are no rows, lines of another number of fields rejects.

        A part that does not parse to one row a line is halved until the lines that are to blame are
        alone: what becomes of a line does not depend on its neighbours.
        """
        header = read_header(chunk.path)
        with opened(chunk.path) as file:  # unpacked up to the chunk
            file.seek(chunk.start)
            content = file.read(chunk.stop - chunk.start)
        rows_of_lines = list(_rows_of(io.BytesIO(content), header))
        firsts = np.cumsum([0, *map(len, rows_of_lines)])  # a row's number is its first line's
        lines = [re.sub(rb"\r?(\n|\Z)", b"\n", b"".join(row)).strip(b"\n") for row in rows_of_lines]
        if header.encoding != UTF_8:
            lines = [line.decode(header.encoding, errors="replace").encode() for line in lines]
        # The parser would take a return for the end of a row.
        reasons = {j: "a return inside the line" for j, line in enumerate(lines) if b"\r" in line}
        rows = [j for j, line in enumerate(lines) if line.strip() and j not in reasons]
        tables, good, parts = [_parse([], header, columns)], [], [rows]
        while parts:
            part = parts.pop()
            try:
                table = _parse([lines[j] for j in part], header, columns)
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
        numbers = (chunk.row + firsts).tolist()
        rejects = [Reject(numbers[j], why, value=_shown(lines[j])) for j, why in reasons.items()]
        places = np.array([numbers[j] for j in good], dtype=np.int64)
        return Rows(pa.concat_tables(tables), places, rejects)


class Parquet:
    """A file with types, read in chunks of rows, wherever its row groups end."""

    is_typed = True

    @staticmethod
    def schema(path: Path) -> pa.Schema:
        """The file's names and types; a ConfigError if it is no Parquet file."""
        with reading(path, "Parquet"):
            return pq.read_schema(path)

    @staticmethod
    def chunks(path: Path, name: str, chunk_rows: int) -> Iterator[Chunk]:
        """Cuts a file into chunks of so many rows."""
        with reading(path, "Parquet"):
            num_rows = pq.read_metadata(path).num_rows
        for row in range(1, num_rows + 1, chunk_rows):
            yield Chunk(str(path), name, row, min(chunk_rows, num_rows + 1 - row))

    @staticmethod
    def read(chunk: Chunk, columns: Sequence[str]) -> Rows:
        """The chunk's rows; only the row groups that have some are decoded, batch by batch."""
        first, stop = chunk.row - 1, chunk.row - 1 + chunk.num_rows  # from 0
        with reading(chunk.path, "Parquet"), pq.ParquetFile(chunk.path) as file:
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
            table.validate(full=True)  # that texts are UTF-8, say
        for place, field in enumerate(table.schema):
            if field.type == pa.string_view():
                table = table.set_column(place, field.name, table[field.name].cast(pa.string()))
        return Rows(table, chunk.row + np.arange(table.num_rows), [])


def _rows_of(lines: Iterable[bytes], header: Header) -> Iterator[list[bytes]]:
    """The lines of each row: one, or some where quotes are open at a line's end and closed later.

    They must have the header's number of fields: else the first line has a quote too many.
    """
    lines, ahead = iter(lines), deque[bytes]()
    while row := [ahead.popleft()] if ahead else list(islice(lines, 1)):
        if row[0].count(b'"') % 2:
            ahead.extend(islice(lines, MAX_LINES - len(ahead)))
            is_odd = (n for n, line in enumerate(ahead, 1) if line.count(b'"') % 2)
            if _is_row([*row, *islice(ahead, stop := next(is_odd, 0))], header):
                row += [ahead.popleft() for _ in range(stop)]
        yield row


def _is_row(lines: list[bytes], header: Header) -> bool:
    try:
        text = io.StringIO(b"".join(lines).decode(header.encoding), newline="")
        rows = list(csv.reader(text, delimiter=header.separator, strict=True))
    except (UnicodeDecodeError, csv.Error):
        return False
    return list(map(len, rows)) == [len(header.names)]


def _shown(line: bytes) -> str:
    return line.decode(errors="replace").strip()[:SHOWN]


def _parse(lines: Sequence[bytes], header: Header, columns: Sequence[str]) -> pa.Table:
    # A row more, which quotes that are left open would swallow.
    last = header.separator.join(["x"] * len(header.names)).encode()
    data = b"\n".join([*lines, last, b""])
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        pyarrow.csv.ReadOptions(
            column_names=header.names, use_threads=False, block_size=len(data) + 1
        ),
        pyarrow.csv.ParseOptions(delimiter=header.separator, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=list(columns),
            strings_can_be_null=True,
        ),
    )
    return table.slice(0, table.num_rows - 1)

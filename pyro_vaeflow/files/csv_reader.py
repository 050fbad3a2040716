"""csv files in chunks of whole lines, as text; a line that is no row costs only itself.

`pyarrow.dataset` guesses the types of a csv file and stops at the first value that does not fit, so
lines go to pyarrow's parser as text, chunk by chunk, and `pyro_vaeflow.files.parsing` makes
numbers of them. A row is a line: a line break inside quotes is an error of two rows.
"""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pyro_vaeflow.files.chunks import Chunk, Reject, Rows
from pyro_vaeflow.validation import ConfigError

BOM = b"\xef\xbb\xbf"
SHOWN = 1000  # characters of a line that is rejected


def schema(path: Path) -> pa.Schema:
    """The names of the header; all columns are text.

    Raises:
        ConfigError: the file has no header that can be read.
    """
    with path.open("rb") as file:
        line = file.readline().removeprefix(BOM)
    try:
        names = next(csv.reader([line.decode()], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} has no header line: {error}") from error
    if not names:
        raise ConfigError(f"{path} has no header line: the first one is blank")
    return pa.schema([(name, pa.string()) for name in names])


def chunks(path: Path, name: str, chunk_rows: int) -> Iterator[Chunk]:
    """Cuts a file into chunks of so many lines, in one pass."""
    with path.open("rb") as file:
        start, row = len(file.readline()), 1
        while lines := list(islice(file, chunk_rows)):
            stop = start + sum(map(len, lines))
            yield Chunk(str(path), name, row, len(lines), start, stop)
            start, row = stop, row + len(lines)


def read(chunk: Chunk, columns: Sequence[str]) -> Rows:
    """The chunk's rows; blank lines are no rows, lines of another number of fields are rejected.

    A part that does not parse to one row a line is halved until the lines that are to blame are
    alone: what becomes of a line does not depend on its neighbours.
    """
    path = Path(chunk.path)
    names = schema(path).names
    with path.open("rb") as file:
        file.seek(chunk.start)
        listed = file.read(chunk.stop - chunk.start).split(b"\n")
    listed = [line.removesuffix(b"\r") for line in listed]
    # The parser would take a return for the end of a row.
    whole = [place for place, line in enumerate(listed) if line.strip() and b"\r" not in line]
    lines, at = [listed[place] for place in whole], chunk.row + np.array(whole, dtype=np.int64)
    rejects = [
        Reject(chunk.row + place, "a return inside the line", value=_shown(line))
        for place, line in enumerate(listed)
        if b"\r" in line
    ]
    parts, places = [_parse([], names, columns)], [at[:0]]
    todo = [(0, len(lines))]
    while todo:
        low, high = todo.pop()
        try:
            part, reason = _parse(lines[low:high], names, columns), "quotes are not closed"
        except pa.ArrowInvalid as error:
            part, reason = None, str(error).partition(": ")[2]
        if part is not None and part.num_rows == high - low:
            parts.append(part)
            places.append(at[low:high])
        elif high - low > 1:
            middle = (low + high) // 2
            todo += [(middle, high), (low, middle)]
        else:
            value = _shown(lines[low])
            reason = reason.partition(f": {value}")[0].removeprefix("Row #1: ")
            rejects.append(Reject(int(at[low]), reason, value=value))
    return Rows(pa.concat_tables(parts), np.concatenate(places), rejects)


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

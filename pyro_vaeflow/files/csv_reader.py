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

IS_TYPED = False  # a file does not say which columns are numbers
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
    names = schema(Path(chunk.path)).names
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

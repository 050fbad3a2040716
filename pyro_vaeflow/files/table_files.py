"""Files of a table: which they are, by a path, a folder or a glob, and how each is read."""

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vaeflow.files.csv_header import OPENERS
from pyro_vaeflow.files.readers import Chunk, Csv, Parquet, Rows
from pyro_vaeflow.validation import ConfigError, warn

# By the end of a file's name, in any case.
FORMATS: dict[str, type[Csv] | type[Parquet]] = {
    **dict.fromkeys((t + end for t in (".csv", ".tsv") for end in ("", *OPENERS)), Csv),
    **dict.fromkeys((".parquet", ".pq"), Parquet),
}


def reader_of(path: Path | str) -> Any:
    """The class that reads a file, by its name; None if it is none of a table."""
    name = str(path).lower()
    return next((reader for end, reader in FORMATS.items() if name.endswith(end)), None)


def find_files(data: str, but: Path | None = None) -> dict[str, Path]:
    """The files of a path, a folder (and those inside it) or a glob, by name, in order of name.

    Args:
        but: a folder whose files are left out, absolute.

    Raises:
        ConfigError: there is none, or they are not all of one known kind.
    """
    root = Path(data)
    if root.is_dir():
        # Hidden files, and those that other tools leave beside a data set, are not part of it.
        names = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        names = [name for name in names if not any(part[0] in "._" for part in name.parts)]
        paths = [root / name for name in names if reader_of(name)]
        if paths and (others := sorted(str(name) for name in names if not reader_of(name))):
            warn(
                f"{data}: {len(others)} files that are no csv or Parquet are not read: {others[:5]}"
            )
        if keys := sorted({part for n in names for part in n.parts[:-1] if "=" in part}):
            warn(f"{data}: folders such as {keys[0]!r} are no columns; write them into the files")
    else:
        paths = [root] if root.is_file() else [Path(p) for p in glob.glob(data, recursive=True)]
    files = sorted(path for path in paths if path.is_file())
    if but is not None:
        files = [path for path in files if not path.resolve().is_relative_to(but)]
    if not files:
        raise ConfigError(f"no csv or Parquet file in {data!r}; give a file, a folder or a glob")
    if len(readers := {reader_of(path) for path in files}) > 1 or None in readers:
        suffixes = sorted({path.suffix for path in files})
        raise ConfigError(
            f"{data!r} has files of {', '.join(suffixes)}; give those of one kind, .csv or .parquet"
        )
    if not root.is_dir():
        root = Path(os.path.commonpath([path.parent for path in files]))
    return {path.relative_to(root).as_posix(): path for path in files}


def read_schemas(files: Mapping[str, Path], columns: Sequence[str] = ()) -> dict[str, Any]:
    """The schema of each file, all of which must have each of the columns once."""
    schemas = {name: reader_of(path).schema(path) for name, path in files.items()}
    for name, schema in schemas.items():
        if missing := [column for column in columns if column not in schema.names]:
            raise ConfigError(f"{files[name]} lacks the columns {missing}; it has {schema.names}")
        if twice := [column for column in columns if schema.names.count(column) > 1]:
            raise ConfigError(f"{files[name]} has the columns {twice} more than once")
    return schemas


def chunks_of(files: Mapping[str, Path], chunk_rows: int) -> Iterator[Chunk]:
    """All chunks of all files, in order."""
    for name, path in files.items():
        yield from reader_of(path).chunks(path, name, chunk_rows)


def read_chunk(chunk: Chunk, columns: Sequence[str]) -> Rows:
    """The rows of a chunk, with the columns that are named."""
    return reader_of(chunk.path).read(chunk, columns)


def index_columns(schema: Any) -> list[str]:
    """The columns of a Parquet file that are the index of the pandas frame that it was."""
    metadata = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    return [name for name in metadata.get("index_columns", []) if name in schema.names]

"""Files of a table: one file, a folder or a glob, csv or Parquet, read chunk after chunk."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vaeflow.files import csv_reader, parquet_reader
from pyro_vaeflow.files.chunks import Chunk, Rows
from pyro_vaeflow.validation import ConfigError

# By suffix; a further kind of file is a module with the same functions.
FORMATS = {".csv": csv_reader, ".parquet": parquet_reader}


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
        names = [path.relative_to(root) for path in root.rglob("*") if path.suffix in FORMATS]
        paths = [root / n for n in names if not any(part[0] in "._" for part in n.parts)]
    else:
        paths = [root] if root.is_file() else [Path(p) for p in glob.glob(data, recursive=True)]
    files = sorted(path for path in paths if path.is_file())
    if but is not None:
        files = [path for path in files if not path.resolve().is_relative_to(but)]
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

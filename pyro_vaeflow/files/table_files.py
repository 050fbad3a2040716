"""Tables in files: one file, a folder or a glob, csv or Parquet, read chunk after chunk."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vaeflow.files import csv_reader, parquet_reader
from pyro_vaeflow.files.chunks import Chunk, Rows
from pyro_vaeflow.validation import ConfigError


@dataclass(frozen=True)
class Format:
    """How files of one kind are read; a new kind is an entry of `FORMATS`."""

    schema: Callable[[Path], Any]
    chunks: Callable[[Path, str, int], Iterator[Chunk]]
    read: Callable[[Chunk, Sequence[str]], Rows]
    typed: bool
    """Whether the file says which columns are numbers."""


FORMATS = {
    ".csv": Format(csv_reader.schema, csv_reader.chunks, csv_reader.read, typed=False),
    ".parquet": Format(
        parquet_reader.schema, parquet_reader.chunks, parquet_reader.read, typed=True
    ),
}


def find_files(data: str) -> dict[str, Path]:
    """The files of a path, a folder (and those inside it) or a glob, by name, in order of name.

    Raises:
        ConfigError: there is none, or they are not all of one known kind.
    """
    path = Path(data)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.suffix in FORMATS and _is_open(p, path)]
    else:
        found = [path] if path.is_file() else [Path(p) for p in glob.glob(data, recursive=True)]
    files = sorted(p for p in found if p.is_file())
    if not files:
        raise ConfigError(f"no csv or Parquet file in {data!r}; give a file, a folder or a glob")
    suffixes = {p.suffix for p in files}
    if len(suffixes) > 1 or not suffixes <= FORMATS.keys():
        raise ConfigError(
            f"{data!r} has files of {', '.join(sorted(suffixes))}; give those of one kind, "
            f"{' or '.join(FORMATS)}"
        )
    root = path if path.is_dir() else Path(os.path.commonpath([p.parent for p in files]))
    return {p.relative_to(root).as_posix(): p for p in files}


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


def _is_open(path: Path, root: Path) -> bool:
    """Hidden files, and those that other tools leave beside a data set, are not part of it."""
    return not any(part.startswith((".", "_")) for part in path.relative_to(root).parts)

"""Fits of a detector to the rows of files: one function reads the rows, another trains."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm

from pyro_vaeflow.detector.estimator import VAEFlowDetector
from pyro_vaeflow.files.parsing import check_types, find_spellings, is_text, to_frame
from pyro_vaeflow.files.readers import Chunk, Rows
from pyro_vaeflow.files.table_files import (
    chunks_of,
    find_files,
    index_columns,
    read_chunk,
    read_schemas,
    reader_of,
)
from pyro_vaeflow.inference.callbacks import InterruptedWarning
from pyro_vaeflow.inference.training import NonFiniteError
from pyro_vaeflow.validation import ConfigError, check_names, warn

CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train on.

    Args:
        frame: ``(num_rows, num_columns)``.
        texts: the columns that are not numbers.
        num_seen: rows that were read.
        rejected: reason -> how many rows were left out for it.
    """

    frame: pd.DataFrame
    texts: list[str]
    num_seen: int
    rejected: Counter[str]


def read_rows(
    data: str,
    *,
    drop: Sequence[str] = (),
    max_rows: int | None = None,
    first: bool = False,
    kinds: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> TrainingRows:
    """Reads rows of csv or Parquet files to train on.

    Memory grows with `max_rows`, not with the files. Rows whose numbers are none are left out.

    Args:
        data: a file, a folder or a glob.
        drop: columns that are no features: labels, row ids.
        max_rows: at most so many rows, drawn without replacement from all; None for all.
        first: whether to take the first `max_rows` instead, without reading further.
        kinds: column -> kind, as in `VAEFlowDetector`: else a csv column holds numbers or dates if
            95 of 100 of its entries are.
        seed: of the draw.

    Raises:
        ConfigError: there are no such files, rows or columns, or a column is of a type that no
            model takes.
    """
    files = find_files(data)
    first_schema = next(iter(read_schemas(files).values()))
    check_names(drop, first_schema.names, "column to leave out")
    index = [name for name in index_columns(first_schema) if name not in {*drop, *(kinds or {})}]
    if index:
        warn(f"{index} hold the index of a pandas frame and are left out; kinds keeps a column")
    columns = [name for name in first_schema.names if name not in {*drop, *index}]
    if not columns:
        raise ConfigError(f"no column of {data!r} is left to learn from")
    schemas = read_schemas(files, columns)
    for name, schema in schemas.items():
        if more := sorted(set(schema.names) - {*first_schema.names}):
            warn(f"{files[name]} has the columns {more}, which the first file lacks: not read")
    is_typed = reader_of(next(iter(files.values()))).is_typed
    if is_typed:
        empty = next(iter(schemas.values())).empty_table()
        spellings = find_spellings(empty.select(columns), kinds, is_typed)
        for name, schema in schemas.items():
            check_types(schema, spellings, files[name])
    table, num_seen, rejected = _read(files, columns, max_rows, first, seed, progress)
    if not is_typed:
        spellings = find_spellings(table, kinds, is_typed)
    frame, rows = to_frame(Rows(table, np.arange(table.num_rows), []), spellings, True)
    rejected.update(f"column {reject.column!r} {reject.reason}" for reject in rows.rejects)
    texts = [name for name, spelling in spellings.items() if spelling is None]
    return TrainingRows(frame, texts, num_seen, rejected)


def train_and_save(
    rows: TrainingRows, out: Path, settings: Mapping[str, Any], progress: bool = False
) -> VAEFlowDetector:
    """Fits a detector with these settings to the rows and saves it in `out`.

    Raises:
        ConfigError: a setting is out of range, or the rows cannot be learned from.
        KeyboardInterrupt: Ctrl-C ended training; a half-trained detector is not saved.
    """
    detector = VAEFlowDetector(**settings, progress=progress)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", InterruptedWarning)
            detector.fit(rows.frame)
    except InterruptedWarning as stop:
        how = "the same command resumes" if detector.checkpoint_dir else "--checkpoint_dir keeps it"
        raise KeyboardInterrupt(f"stopped in training: {out} is as it was; {how}") from stop
    except (NonFiniteError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot fit: {error}") from error
    detector.set_params(progress=False)  # who loads it wants no bars
    detector.save(out)
    return detector


def _read(
    files: Mapping[str, Path],
    columns: Sequence[str],
    max_rows: int | None,
    first: bool,
    seed: int,
    progress: bool,
) -> tuple[Any, int, Counter[str]]:
    """The first or drawn rows as a table, how many were read, and reasons of rows left out."""
    chunks: Iterable[Chunk] = chunks_of(files, CHUNK_ROWS)
    drawn = None  # places among all rows
    if max_rows is not None and not first:
        chunks = list(chunks)
        total = sum(chunk.num_rows for chunk in chunks)
        drawn = np.random.default_rng(seed).choice(total, min(max_rows, total), replace=False)
    tables, num_seen, rejected, start = [], 0, Counter[str](), 0
    with tqdm(desc="read", unit="row", unit_scale=True, disable=not progress) as bar:
        for chunk in chunks:
            rows = read_chunk(chunk, columns)
            num_seen += len(rows.numbers)
            rejected.update(reject.reason for reject in rows.rejects)
            table = rows.table
            if drawn is not None:
                is_drawn = np.isin(start + rows.numbers - chunk.row, drawn)
                table = table.filter(pa.array(is_drawn))
            tables.append(table)
            start += chunk.num_rows
            bar.update(chunk.num_rows)
            if first and max_rows is not None and num_seen >= max_rows:
                break
    if not num_seen:
        why = f": {rejected.most_common(1)[0][0]}" if rejected else ""
        raise ConfigError(f"the files have no rows{why}")
    return _joined(tables).slice(0, max_rows), num_seen, rejected


def _joined(tables: Sequence[Any]) -> Any:
    """The tables one after another; texts in some and numbers in others are texts."""
    schema, types = tables[0].schema, pa.types
    for place, field in enumerate(schema):
        kinds, common = {table.schema.field(place).type for table in tables}, None
        if len(kinds) == 1:
            continue
        if any(is_text(kind) or types.is_dictionary(kind) for kind in kinds):
            common = pa.string()
        elif any(map(types.is_timestamp, kinds)):
            common = pa.timestamp("us")
        elif any(map(types.is_boolean, kinds)):
            common = pa.float64()
        if common is not None:
            schema = schema.set(place, field.with_type(common))
            fields = [table.schema.set(place, schema.field(place)) for table in tables]
            tables = [t.cast(f, safe=False) for t, f in zip(tables, fields, strict=True)]
    return pa.concat_tables(tables, promote_options="permissive")

"""A detector fitted to the rows of files: one function reads the rows, another trains."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm

from pyro_vaeflow.detector.estimator import VAEFlowDetector
from pyro_vaeflow.files.chunks import Rows
from pyro_vaeflow.files.parsing import check_types, find_numeric, to_frame
from pyro_vaeflow.files.table_files import FORMATS, chunks_of, find_files, read_chunk, read_schemas
from pyro_vaeflow.inference.training import NonFiniteError
from pyro_vaeflow.validation import ConfigError, check_names

CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train on, ``(num_rows, num_columns)``, of `num_seen` that were read."""

    frame: pd.DataFrame
    texts: list[str]
    """The columns that are not numbers."""
    num_seen: int
    rejected: Counter[str]
    """Reason -> how many rows were left out for it."""


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
    """Reads rows of csv or Parquet files to train on; the same ones in every process.

    Memory grows with `max_rows`, not with the files. Rows whose numbers are none are left out.

    Args:
        data: a file, a folder or a glob.
        drop: columns that are no features: labels, row ids.
        max_rows: at most so many rows, drawn without replacement from all; None for all.
        first: whether to take the first `max_rows` instead, without reading further.
        kinds: column -> kind, as in `VAEFlowDetector`: else a csv column holds numbers if 95 of
            100 of its entries are.
        seed: of the draw.

    Raises:
        ConfigError: there are no such files or columns, or a column is of a type that no model
            takes.
    """
    files = find_files(data)
    schema = next(iter(read_schemas(files).values()))
    check_names(drop, schema.names, "column to leave out")
    columns = [name for name in schema.names if name not in drop]
    if not columns:
        raise ConfigError(f"no column of {data!r} is left to learn from")
    schemas = read_schemas(files, columns)
    typed = FORMATS[next(iter(files.values())).suffix].typed
    if typed:
        numeric = find_numeric(schema.empty_table().select(columns), kinds, typed)
        for name, found in schemas.items():
            check_types(found, numeric, files[name])
    sample = _Sample(max_rows, first, seed)
    rejects: Counter[str] = Counter()
    with tqdm(desc="read", unit="row", unit_scale=True, disable=not progress) as bar:
        for chunk in chunks_of(files, CHUNK_ROWS):
            rows = read_chunk(chunk, columns)
            rejects.update(reject.reason for reject in rows.rejects)
            sample.add(rows)
            bar.update(chunk.num_rows)
            if sample.is_full:
                break
    rows = sample.rows()
    if not typed:
        numeric = find_numeric(rows.table, kinds, typed)
    frame, rows = to_frame(rows, numeric)
    rejects.update(f"column {reject.column!r} {reject.reason}" for reject in rows.rejects)
    texts = [name for name, is_number in numeric.items() if not is_number]
    return TrainingRows(frame, texts, sample.num_seen, rejects)


def train_and_save(
    rows: TrainingRows, out: Path, settings: Mapping[str, Any], progress: bool = False
) -> VAEFlowDetector:
    """Fits a detector with these settings to the rows and saves it in `out`.

    Raises:
        ConfigError: a setting is out of range, or the rows cannot be learned from.
    """
    detector = VAEFlowDetector(**settings, progress=progress)
    try:
        detector.fit(rows.frame)
    except (NonFiniteError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot fit: {error}") from error
    detector.set_params(progress=False)  # who loads it wants no bars
    detector.save(out)
    return detector


class _Sample:
    """The first rows, or a uniform draw of all that were added: those of the smallest keys.

    Each row has a random key in order of arrival, so chunks of another size draw the same rows.
    """

    def __init__(self, max_rows: int | None, first: bool, seed: int) -> None:
        self.max_rows, self.first = max_rows, first
        self.rng = np.random.default_rng(seed)
        self.num_seen = 0
        self.parts: list[tuple[Any, np.ndarray, np.ndarray]] = []
        self.highest = np.inf

    @property
    def is_full(self) -> bool:
        return self.first and self.max_rows is not None and self.num_seen >= self.max_rows

    def add(self, rows: Rows) -> None:
        self.num_seen += len(rows.places)
        keys = self.rng.random(len(rows.places))
        if self.first:
            keys = np.zeros(len(rows.places))
        good = np.flatnonzero(keys < self.highest)
        self.parts.append((rows.table.take(good), rows.places[good], keys[good]))
        if self.max_rows and sum(len(part[2]) for part in self.parts) > 2 * self.max_rows:
            self._prune(self.max_rows)

    def _prune(self, max_rows: int) -> None:
        table, places, keys = self._joined()
        kept = np.sort(np.argsort(keys, kind="stable")[:max_rows])
        self.parts = [(table.take(kept), places[kept], keys[kept])]
        if len(kept) == max_rows:
            self.highest = keys[kept].max()

    def _joined(self) -> tuple[Any, np.ndarray, np.ndarray]:
        tables, places, keys = zip(*self.parts, strict=True)
        return (
            pa.concat_tables(tables, promote_options="permissive"),
            np.concatenate(places),
            np.concatenate(keys),
        )

    def rows(self) -> Rows:
        if not self.parts:
            raise ConfigError("the files have no rows")
        if self.max_rows:
            self._prune(self.max_rows)
        table, places, _ = self._joined()
        return Rows(table.combine_chunks(), places, [])

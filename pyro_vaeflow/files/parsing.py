"""Columns of files as numbers and texts for the detector; a row whose number is none is rejected.

Texts become numbers by one parser, whatever else is in the chunk: what becomes of a row depends on
the row alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.types as kinds_of

from pyro_vaeflow.files.chunks import Reject, Rows
from pyro_vaeflow.validation import ConfigError

MISSING = pa.array(pa.csv.ConvertOptions().null_values)  # in csv files: "", NA, null and the like
NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity|nan))$"
ENOUGH = 0.95  # of the entries of a column of texts are numbers: the others are errors


def find_numeric(table: Any, kinds: Mapping[str, str] | None, typed: bool) -> dict[str, bool]:
    """Column -> whether it holds numbers: by `kinds`, else its type or 95 of 100 of its texts.

    Args:
        typed: whether a column of texts is one, as in Parquet files.
    """
    chosen = {name: kind != "categorical" for name, kind in (kinds or {}).items()}

    def is_numeric(values: Any) -> bool:
        return _is_number(values.type) if typed else _has_numbers(values)

    return {
        name: chosen[name] if name in chosen else is_numeric(table[name])
        for name in table.column_names
    }


def check_types(schema: Any, numeric: Mapping[str, bool], path: Any) -> None:
    """Refuses columns of a Parquet file that are of another type than the model learned.

    Raises:
        ConfigError: names the file, the column and its type.
    """
    for name, is_number in numeric.items():
        kind = schema.field(name).type
        fits = _is_number(kind) or kinds_of.is_boolean(kind) or kinds_of.is_null(kind)
        if not is_number:
            fits = fits or _is_text(kind) or kinds_of.is_dictionary(kind)
        if not fits:
            wanted = "numbers" if is_number else "texts, booleans or numbers"
            raise ConfigError(f"column {name!r} of {path} holds {kind}; it should hold {wanted}")


def to_frame(rows: Rows, numeric: Mapping[str, bool]) -> tuple[pd.DataFrame, Rows]:
    """The good rows as a frame of the columns of `numeric`, and as `Rows` with all rejects."""
    columns: dict[str, Any] = {}
    good, rejects = np.ones(rows.table.num_rows, dtype=bool), list(rows.rejects)
    for name, is_number in numeric.items():
        values = rows.table[name]
        if not is_number:
            columns[name] = values
            continue
        columns[name], unread = _numbers(values)
        infinite = np.isinf(columns[name])
        for bad, reason in ((unread, "is no number"), (infinite, "is infinite")):
            for place in np.flatnonzero(bad & good):
                value = str(values[int(place)].as_py())[:100]
                rejects.append(Reject(int(rows.places[place]), reason, name, value))
            good &= ~bad
    kept = pa.array(good)
    frame = pd.DataFrame(
        {
            name: values[good] if numeric[name] else values.filter(kept).to_pandas()
            for name, values in columns.items()
        }
    )
    rejects.sort(key=lambda reject: reject.row)
    return frame, Rows(rows.table.filter(kept), rows.places[good], rejects)


def _numbers(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """float64, NaN where missing, and where there is something else than a number."""
    if not _is_text(values.type):
        numbers = values.cast(pa.float64(), safe=False).to_numpy()
        return numbers, np.zeros(len(numbers), dtype=bool)
    text = _present(pc.utf8_trim_whitespace(values))
    try:
        numbers = text.cast(pa.float64())
    except pa.ArrowInvalid:
        numbers = pc.if_else(
            pc.match_substring_regex(text, NUMBER), text, pa.scalar(None, text.type)
        )
        numbers = numbers.cast(pa.float64())
    unread = pc.and_(text.is_valid(), numbers.is_null())
    return numbers.to_numpy(), unread.to_numpy()


def _present(text: Any) -> Any:
    missing = pc.is_in(text, value_set=MISSING.cast(text.type))
    return pc.if_else(missing, pa.scalar(None, text.type), text)


def _has_numbers(text: Any) -> bool:
    present = len(text) - _present(pc.utf8_trim_whitespace(text)).null_count
    return present > 0 and _numbers(text)[1].sum() <= (1 - ENOUGH) * present


def _is_number(kind: Any) -> bool:
    return kinds_of.is_integer(kind) or kinds_of.is_floating(kind) or kinds_of.is_decimal(kind)


def _is_text(kind: Any) -> bool:
    return kinds_of.is_string(kind) or kinds_of.is_large_string(kind)

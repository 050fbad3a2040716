"""Columns of files as numbers and texts; a row with something else for a number is rejected.

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
import pyarrow.types as types

from pyro_vaeflow.files.table_files import Reject, Rows
from pyro_vaeflow.validation import ConfigError

MISSING = pa.array(pa.csv.ConvertOptions().null_values)  # in csv files: "", NA, null and the like
NUMBER = r"^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity|nan))$"
ENOUGH = 0.95  # of the entries of a column of texts are numbers: the others are errors


def find_numeric(table: Any, kinds: Mapping[str, str] | None, is_typed: bool) -> dict[str, bool]:
    """Column -> whether it holds numbers: by `kinds`, else its type or 95 of 100 of its texts.

    Args:
        is_typed: whether a column of texts is one, as in Parquet files.
    """
    numeric = {name: kind != "categorical" for name, kind in (kinds or {}).items()}
    for name in table.column_names:
        if name not in numeric:
            values = table[name]
            numeric[name] = _is_number(values.type) if is_typed else _has_numbers(values)
    return {name: numeric[name] for name in table.column_names}


def check_types(schema: Any, numeric: Mapping[str, bool], path: Any) -> None:
    """Refuses columns of a Parquet file that are of another type than the model learned.

    Raises:
        ConfigError: names the file, the column and its type.
    """
    for name, is_number in numeric.items():
        kind = schema.field(name).type
        fits = _is_number(kind) or types.is_boolean(kind) or types.is_null(kind)
        if not is_number:
            fits = fits or _is_text(kind) or types.is_dictionary(kind)
        if not fits:
            wanted = "numbers" if is_number else "texts, booleans or numbers"
            raise ConfigError(f"column {name!r} of {path} holds {kind}; it should hold {wanted}")


def to_frame(rows: Rows, numeric: Mapping[str, bool]) -> tuple[pd.DataFrame, Rows]:
    """The good rows as a frame of the columns of `numeric`, and as `Rows` with all rejects."""
    columns: dict[str, Any] = {}
    is_good, rejects = np.ones(rows.table.num_rows, dtype=bool), list(rows.rejects)
    for name, is_number in numeric.items():
        values = rows.table[name]
        if not is_number:
            columns[name] = values.to_pandas()
            continue
        columns[name], is_unread = _numbers(values)
        for is_bad, reason in (
            (is_unread, "is no number"),
            (np.isinf(columns[name]), "is infinite"),
        ):
            for j in np.flatnonzero(is_bad & is_good).tolist():
                value = str(values[j].as_py())[:100]
                rejects.append(Reject(int(rows.numbers[j]), reason, name, value))
            is_good &= ~is_bad
    frame = pd.DataFrame(columns)[is_good].reset_index(drop=True)
    rejects.sort(key=lambda reject: reject.row)
    return frame, Rows(rows.table.filter(pa.array(is_good)), rows.numbers[is_good], rejects)


def _numbers(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """float64, NaN where missing, and where there is something else than a number."""
    if not _is_text(values.type):
        numbers = values.cast(pa.float64(), safe=False).to_numpy()
        return numbers, np.zeros(len(numbers), dtype=bool)
    text = _present(values)
    try:
        numbers = text.cast(pa.float64())
    except pa.ArrowInvalid:
        is_number = pc.match_substring_regex(text, NUMBER)
        numbers = pc.if_else(is_number, text, pa.scalar(None, text.type)).cast(pa.float64())
    return numbers.to_numpy(), pc.and_(text.is_valid(), numbers.is_null()).to_numpy()


def _present(values: Any) -> Any:
    """Texts without spaces around them; those that stand for a missing value are null."""
    text = pc.utf8_trim_whitespace(values)
    is_missing = pc.is_in(text, value_set=MISSING.cast(text.type))
    return pc.if_else(is_missing, pa.scalar(None, text.type), text)


def _has_numbers(values: Any) -> bool:
    num_present = len(values) - _present(values).null_count
    return num_present > 0 and _numbers(values)[1].sum() <= (1 - ENOUGH) * num_present


def _is_number(kind: Any) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def _is_text(kind: Any) -> bool:
    return types.is_string(kind) or types.is_large_string(kind)

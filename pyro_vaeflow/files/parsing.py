"""Columns of files as numbers and texts; a row with something else for a number is rejected.

Texts become numbers as `pyro_vaeflow.tables` reads them, whatever else is in the chunk: what
becomes of a row depends on the row alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.types as types

from pyro_vaeflow.files.readers import Reject, Rows
from pyro_vaeflow.tables.calendars import TYPED, dates_of, spelling_of_dates
from pyro_vaeflow.tables.number_texts import Spelling, read_numbers, spelling_of
from pyro_vaeflow.validation import ConfigError

MISSING = pa.array(pa.csv.ConvertOptions().null_values)  # in csv files: "", NA, null and the like
Spellings = Mapping[str, Spelling | None]


def find_spellings(
    table: Any, kinds: Mapping[str, str] | None, is_typed: bool
) -> dict[str, Spelling | None]:
    """Column -> how it spells numbers or dates; None of texts. By `kinds`, type or texts."""
    found: dict[str, Spelling | None] = {}
    for name in table.column_names:
        values, kind = table[name], (kinds or {}).get(name)
        if kind == "categorical":
            found[name] = None
        elif is_typed:
            is_date = types.is_temporal(values.type) and not types.is_duration(values.type)
            number = Spelling() if _is_number(values.type) else None
            found[name] = Spelling(dates=TYPED) if is_date else number
        else:
            text = _present(values).to_pandas().astype("string")
            found[name] = spelling_of(text) or spelling_of_dates(text)
            if found[name] is None and kind is not None:
                found[name] = Spelling(".")
    return found


def check_types(schema: Any, spellings: Spellings, path: Any) -> None:
    """Refuses columns of a Parquet file that are of another type than the model learned."""
    for name, spelling in spellings.items():
        kind = schema.field(name).type
        fits = _is_number(kind) or types.is_boolean(kind) or types.is_null(kind)
        wanted = "numbers"
        if spelling is None:
            fits = fits or is_text(kind) or types.is_dictionary(kind)
            wanted = "texts, booleans or numbers"
        elif spelling.dates:
            fits = fits or is_text(kind) or types.is_temporal(kind)
            wanted = "dates"
        elif spelling.decimal:
            fits = fits or is_text(kind)
        if not fits:
            raise ConfigError(f"column {name!r} of {path} holds {kind}; it should hold {wanted}")


def to_frame(
    rows: Rows, spellings: Spellings, is_learning: bool = False
) -> tuple[pd.DataFrame, Rows]:
    """The good rows as a frame of the columns of `spellings`, and as `Rows` with all rejects.

    Args:
        is_learning: whether a column whose numbers are no plain ones stays one of texts: what is
            fitted to it must know how it spells them.
    """
    columns: dict[str, Any] = {}
    is_good, rejects = np.ones(rows.table.num_rows, dtype=bool), list(rows.rejects)
    for name, spelling in spellings.items():
        values = rows.table[name]
        if spelling is None:
            columns[name] = values.to_pandas()
            continue
        faults: dict[str, np.ndarray] = {}
        if spelling.dates:
            columns[name] = (_present(values) if is_text(values.type) else values).to_pandas()
            faults["is no date"] = dates_of(columns[name], spelling)[1]
        else:
            columns[name], is_unread, is_plain = _numbers(values, spelling)
            faults["is no number"] = is_unread
            faults["is infinite"] = np.isinf(columns[name])
            if is_learning and not is_plain:
                columns[name] = _present(values).to_pandas()
        for reason, is_bad in faults.items():
            for j in np.flatnonzero(is_bad & is_good).tolist():
                value = str(values[j].as_py())[:100]
                rejects.append(Reject(int(rows.numbers[j]), reason, name, value))
            is_good &= ~is_bad
    frame = pd.DataFrame(columns)[is_good].reset_index(drop=True)
    rejects.sort(key=lambda reject: reject.row)
    return frame, Rows(rows.table.filter(pa.array(is_good)), rows.numbers[is_good], rejects)


def _numbers(values: Any, spelling: Spelling) -> tuple[np.ndarray, np.ndarray, bool]:
    """float64, NaN where missing; where there is no number; whether numbers are plain ones."""
    if not is_text(values.type):
        numbers = values.cast(pa.float64(), safe=False).to_numpy()
        return numbers, np.zeros(len(numbers), dtype=bool), True
    text = _present(values)
    if spelling.decimal != ",":
        try:
            return text.cast(pa.float64()).to_numpy(), np.zeros(len(text), dtype=bool), True
        except pa.ArrowInvalid:
            pass
    known = text.to_pandas().astype("string")
    numbers, is_unread = read_numbers(known, spelling)
    is_plain = pd.to_numeric(known, errors="coerce").notna() | known.isna() | is_unread
    return numbers, is_unread, bool(is_plain.all())


def _present(values: Any) -> Any:
    """Texts without spaces around them; those that stand for a missing value are null."""
    text = pc.utf8_trim_whitespace(values)
    is_missing = pc.is_in(text, value_set=MISSING.cast(text.type))
    return pc.if_else(is_missing, pa.scalar(None, text.type), text)


def _is_number(kind: Any) -> bool:
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of texts."""
    return types.is_string(kind) or types.is_large_string(kind) or kind == pa.string_view()

"""Values of a user's column, in whatever dtype: as numbers, as texts, or refused by name."""

from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

# What pandas says that a column holds.
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")
DATES = ("datetime64", "datetime", "date", "time", "timedelta64", "timedelta", "period")


def check_values(values: pd.Series) -> None:
    """Refuses what is neither numbers nor texts; categories of anything are texts.

    Raises:
        TypeError: the column holds dates, complex numbers or containers.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        return
    content, name = pd.api.types.infer_dtype(values, skipna=True), str(values.name)
    if content in DATES:
        raise TypeError(
            f"column {name!r} holds dates or times; give numbers that matter: the hour, the days "
            "since a fixed date"
        )
    if content == "complex":
        raise TypeError(f"column {name!r} holds complex numbers; give real and imaginary columns")
    if content.startswith(("mixed", "unknown")):
        for value in values:
            if not pd.api.types.is_scalar(value):
                raise TypeError(
                    f"column {name!r} holds a value of type {type(value).__name__}; give one number"
                    " or text an entry"
                )


def is_numeric(values: pd.Series) -> bool:
    """Whether a column is one of numbers, in any dtype; booleans and texts are categories."""
    if values.dtype == object:
        return pd.api.types.infer_dtype(values, skipna=True) in NUMBERS
    return has_number_dtype(values)


def has_number_dtype(values: pd.Series) -> bool:
    """Whether the dtype alone says that a column holds numbers."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def as_numbers(values: pd.Series) -> np.ndarray:
    """Values as float64 ``(num_data,)``, NaN where missing.

    Raises:
        ValueError: a value is not a number.
    """
    try:
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"column {str(values.name)!r} holds values that are no numbers: {error}; "
            "pd.to_numeric(values, errors='coerce') makes them missing"
        ) from error


def as_text(values: pd.Series) -> pd.Series:
    """Values as texts ``(num_data,)``; missing ones stay missing.

    A number has one text in every dtype. Whole ones have all their digits in a dtype of integers:
    ids of 16 digits are no float64.

    Raises:
        ValueError: a text is none that Unicode can hold: bytes in another encoding, half a pair.

    Example:
        >>> as_text(pd.Series([80.0, None, 2.5])).tolist()
        ['80', <NA>, '2.5']
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = as_text(pd.Series(values.cat.categories.astype(object), name=values.name))
        return pd.Series(levels.array.take(values.cat.codes.to_numpy(), allow_fill=True))
    if has_number_dtype(values) and not pd.api.types.is_integer_dtype(values):
        values = pd.Series(as_numbers(values), dtype="Float64").astype(object)
    try:
        if values.dtype == object:
            values = values.map(_text_of_number, na_action="ignore")
        return values.astype("string")
    except UnicodeError as error:
        raise ValueError(
            f"column {str(values.name)!r} holds texts that are not UTF-8: {error}; decode them"
        ) from error


def spells_number(text: str) -> bool:
    """Whether a text is a number's."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text_of_number(value: Any) -> Any:
    """A number's text; anything else, booleans too, as it is."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        return value
    if isinstance(value, Integral) or float(value).is_integer():
        return str(int(value))  # type: ignore[arg-type]  # Real has no __int__, its kinds do
    return f"{float(value):.15g}"

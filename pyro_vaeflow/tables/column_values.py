"""Values of a user's column, in whatever dtype: as numbers, as texts, or refused by name."""

import re
import unicodedata
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

from pyro_vaeflow.tables.calendars import DATES
from pyro_vaeflow.tables.number_texts import Spelling, read_numbers
from pyro_vaeflow.validation import warn

# What pandas says that a column of numbers holds.
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "timedelta")
BOOLEANS = dict.fromkeys(["1", "true", "t", "yes", "y"], "1")
BOOLEANS |= dict.fromkeys(["0", "false", "f", "no", "n"], "0")
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
WHOLE = re.compile(r"([+-]?\d+)\.0+")  # 1.0 is 1; 1.10 may be a version
DIGITS = {2: 3, 4: 7}  # bytes of a float -> digits that are the user's
MOST = 0.5  # of a column's entries: if more are none, the column is another, and they no errors


def check_values(values: pd.Series, dates: bool = False) -> None:
    """Refuses what is neither numbers nor texts, nor dates if allowed; categories are texts."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return
    content, name = pd.api.types.infer_dtype(values, skipna=True), str(values.name)
    if content in DATES and not dates:
        raise TypeError(
            f"column {name!r} holds dates or times where numbers or texts are expected; give what "
            "matters of them: the hour, the days since a fixed date"
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
    return has_number_dtype(values) or pd.api.types.is_timedelta64_dtype(values)


def has_number_dtype(values: pd.Series) -> bool:
    """Whether the dtype alone says that a column holds numbers."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def as_numbers(values: pd.Series, spelling: Spelling | None = None) -> np.ndarray:
    """Values as float64 ``(num_data,)``, NaN where missing; texts as `spelling` has them.

    Durations are seconds, and True is 1.

    Raises:
        ValueError: most values are no numbers (a few are missing, with a warning) or one too large.
    """
    if pd.api.types.infer_dtype(values, skipna=True).startswith("timedelta"):
        values = pd.to_timedelta(values).dt.total_seconds()
    try:
        if is_numeric(values) or pd.api.types.is_bool_dtype(values):
            return values.to_numpy(dtype=np.float64, na_value=np.nan)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"column {str(values.name)!r} holds values that are no numbers: {error}; "
            "pd.to_numeric(values, errors='coerce') makes them missing"
        ) from error
    text = as_text(values).replace({"True": "1", "False": "0"})
    numbers, is_unread = read_numbers(text, spelling or Spelling())
    check_read(values, is_unread, "numbers")
    return numbers


def check_read(values: pd.Series, is_unread: np.ndarray, what: str) -> None:
    """Refuses a column of entries that are none of `what`; few are missing, with a warning."""
    if is_unread.any():
        example = str(values[is_unread].iloc[0])[:60]
        told = f"column {str(values.name)!r} holds values that are no {what}, such as {example!r}"
        if is_unread.mean() > MOST:
            raise ValueError(f"{told}; None in their place makes them missing")
        warn(f"{told}: taken as missing")


def as_text(values: pd.Series) -> pd.Series:
    """Values as texts ``(num_data,)``; missing ones stay missing.

    A value has one text in every dtype and spelling: 1.0 is 1, TRUE is True, spaces around it do
    not count, and a float has the digits that its dtype holds. Whole numbers have all their digits
    in a dtype of integers: ids of 16 digits are no float64.

    Raises:
        ValueError: a text is none that Unicode can hold: bytes in another encoding, half a pair.

    Example:
        >>> as_text(pd.Series([80.0, None, 2.5])).tolist()
        ['80', <NA>, '2.5']
        >>> as_text(pd.Series(["80.0", " TRUE"])).tolist()
        ['80', 'True']
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = as_text(pd.Series(values.cat.categories.astype(object), name=values.name))
        return pd.Series(levels.array.take(values.cat.codes.to_numpy(), allow_fill=True))
    digits = DIGITS.get(getattr(values.dtype, "itemsize", 8), 15)
    if has_number_dtype(values) and not pd.api.types.is_integer_dtype(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        values = pd.Series(numbers, dtype="Float64", name=values.name).astype(object)
    try:
        if values.dtype == object:
            values = values.map(lambda value: _text_of_number(value, digits), na_action="ignore")
        place, distinct = pd.factorize(values.astype("string"))
        spelled = pd.array([_one_spelling(text) for text in distinct], dtype="string")
        return pd.Series(spelled.take(place, allow_fill=True), name=values.name)
    except UnicodeError as error:
        raise ValueError(
            f"column {str(values.name)!r} holds texts that are not UTF-8: {error}; decode them"
        ) from error


def _one_spelling(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFC", text.translate(INVISIBLE)).split())
    if text.lower() in ("true", "false"):
        return text.capitalize()
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _text_of_number(value: Any, digits: int) -> Any:
    """A number's text; anything else, booleans too, as it is."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        return value
    if isinstance(value, Integral) or float(value).is_integer():
        return str(int(value))  # type: ignore[arg-type]  # Real has no __int__, its kinds do
    if isinstance(value, np.floating):
        digits = DIGITS.get(value.dtype.itemsize, 15)
    return f"{float(value):.{digits}g}"

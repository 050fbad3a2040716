"""Kinds of columns, learned from training values: one function chooses, one a kind learns."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pyro_vaeflow.tables.calendars import (
    DATES,
    SPANS,
    TYPED,
    format_of_numbers,
    is_unlikely,
    parts_of,
    read_dates,
    spelling_of_dates,
    with_marks,
)
from pyro_vaeflow.tables.column_values import as_numbers, as_text, check_values, is_numeric
from pyro_vaeflow.tables.columns import KINDS, LEFT_OUT, Column
from pyro_vaeflow.tables.number_kinds import (
    MAX_LEVELS,
    NEW_MASS,
    fill_values,
    is_closed,
    learn_numbers,
)
from pyro_vaeflow.tables.number_texts import Spelling, spelling_of
from pyro_vaeflow.validation import warn

CHOICES = (*KINDS, "date")
ONE_OFF = 0.5  # a share of the rows with a text of their own: above it new rows have new ones
FEWEST_NAMES = 20  # such rows, or they are chance
FEWEST_SINGLE = 10  # texts that occur once, to tell how often a fresh row has a new one
INDEX = re.compile(r"|Unnamed: \d+|__index_level_\d+__|(?i:index|row_?(no|num|number|id|index)?)")
NAME = re.compile(r"(?i:.*(^|[_ .-])(id|uuid|guid)|.*[_ .-](key|code|nr|no))|.*[a-z](Id|ID)")


def learn_columns(values: pd.Series, kind: str | None = None) -> list[Column]:
    """What a column of training values ``(num_data,)`` becomes: one `Column`, or a date's parts.

    Dates, and texts and whole numbers that are dates, become the time elapsed and, in a table that
    is long enough, hour, weekday and month. Row numbers, identifiers and free text are left out
    with a warning, unless `kind` is given. All else is for `learn_column`.

    Raises:
        ValueError: the kind is unknown or does not suit the values, or there is no value at all.
        TypeError: the column holds complex numbers or containers.

    Example:
        >>> days = pd.Series(pd.date_range("2024-01-01", periods=30), name="day")
        >>> [column.part for column in learn_columns(days)]
        ['elapsed', 'weekday']
    """
    name = str(values.name)
    if kind is not None and kind not in CHOICES:
        raise ValueError(f"kind of column {name!r} must be one of {CHOICES}, got {kind!r}")
    check_values(values, dates=True)
    is_open = not isinstance(values.dtype, pd.CategoricalDtype) and values.dtype != bool
    if is_open and kind in (None, "date") and (spelling := _dates(values)):
        return _date(name, values, spelling)
    if kind == "date":
        raise ValueError(f"column {name!r} holds no dates of a known format; pd.to_datetime helps")
    if is_open and kind is None:
        if why := _why_left_out(values):
            warn(f"column {name!r} is left out: {why}; kinds={{{name!r}: ...}} keeps it")
            return [Column(name, LEFT_OUT, why=why)]
        if is_numeric(values) and NAME.fullmatch(name):
            numbers = as_numbers(values)
            numbers = numbers[np.isfinite(numbers)]
            if len(numbers) and (numbers % 1.0 == 0.0).all():  # ids, whatever lies between two
                return [replace(_categorical(name, as_text(values)), why="ids, by its name")]
    return [learn_column(values, kind)]


def learn_column(values: pd.Series, kind: str | None = None) -> Column:
    """The column of training values ``(num_data,)``; `kind` is chosen unless it is given.

    A numeric column is discrete if more than half of its entries are one value and a fresh entry is
    new with a probability of at most 0.01, by Good and Turing's estimate: the share of entries
    whose value occurs once. Constant and binary columns are, too, and numbers that come again and
    again with gaps between them, as codes do. Other numbers are positive if all but few are above 0
    and a log-normal fits them better than a normal, by half a nat per row and by two standard
    errors: of heavy tails a few rows set the standard deviation. The rest are continuous, and what
    is not a number is categorical. Texts that are numbers, but for marks among them, are numbers.

    A few entries far beyond the others, and numbers such as -999 that stand for a missing one, are
    not learned from.

    References:
        G. Box, D. Cox, An analysis of transformations, Journal of the Royal Statistical Society B
        26, 1964, section 3: the likelihoods of a normal x and of a normal log x.
        Q. Vuong, Likelihood ratio tests for model selection and non-nested hypotheses, Econometrica
        57, 1989, eq. (5.6): the standard error of their mean difference.
        I. J. Good, The population frequencies of species and the estimation of population
        parameters, Biometrika 40, 1953.

    Raises:
        ValueError, TypeError: as `learn_columns`; dates are refused.

    Example:
        >>> learn_column(pd.Series([0.0, 0.0, 0.0, 1.0, 1.0], name="land")).kind
        'discrete'
        >>> learn_column(pd.Series([0.1, 0.7, 0.4], name="rate")).kind
        'continuous'
        >>> learn_column(pd.Series(np.exp(np.arange(20.0)), name="bytes")).kind
        'positive'
    """
    name = str(values.name)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind of column {name!r} must be one of {KINDS}, got {kind!r}")
    check_values(values)
    spelling = None if kind == "categorical" else _spelling(values)
    if kind == "categorical" or (kind is None and not (is_numeric(values) or spelling)):
        return _categorical(name, as_text(values))
    numbers = as_numbers(values, spelling)
    finite = numbers[np.isfinite(numbers)]
    _check_any(name, len(finite))
    if pd.api.types.is_integer_dtype(values) and len(np.unique(finite)) < values.nunique():
        warn(
            f"column {name!r} holds whole numbers that float64 does not tell apart, such as "
            f"{values.max()}; subtract a constant, or say kinds={{{name!r}: 'categorical'}} of ids"
        )
    if spelling:
        marks = f"; {', '.join(map(repr, spelling.marks))} as missing" if spelling.marks else ""
        warn(
            f"column {name!r} holds texts that spell numbers, and they are taken as numbers{marks};"
            f" say kinds={{{name!r}: 'categorical'}} of codes"
        )
    fills = fill_values(finite) if kind is None else ()
    finite = finite[~np.isin(finite, fills)]
    learned = learn_numbers(name, finite, kind)
    _warn_of_fills(name, [f"{v:g}" for v in fills], numbers, fills)
    spelling = spelling or Spelling()
    return Column(
        name,
        **learned,
        spelling=spelling.decimal + spelling.unit,
        marks=spelling.marks or None,
        fills=fills or None,
        missing=float((np.isnan(numbers) | np.isin(numbers, fills)).mean()),
    )


def _categorical(name: str, text: pd.Series) -> Column:
    """Texts as levels; many that occur once are one level with those that none shows."""
    counts = text.value_counts()
    _check_any(name, len(counts))
    num_single, num_data, why = int((counts == 1).sum()), int(counts.sum()), "texts"
    num_new = counts[MAX_LEVELS:].sum()
    if counts.iloc[0] > 1 and num_single > max(NEW_MASS * num_data, FEWEST_SINGLE):
        num_new = max(num_new, counts[counts <= 2].sum())  # each row as if it were a fresh one
        counts = counts[counts > 1]
        why = f"texts; {num_single} that occur once count as never seen"
    counts = counts[:MAX_LEVELS]
    shares: Any = {"missing": float(text.isna().mean()), "unseen": float(num_new / num_data)}
    return Column(name, "categorical", levels=tuple(sorted(counts.index)), **shares, why=why)


def _check_any(name: str, count: int) -> None:
    if not count:
        raise ValueError(f"column {name!r} has no finite value in the training rows; leave it out")


def _spelling(values: pd.Series) -> Spelling | None:
    """How a column of texts spells numbers; None of any other."""
    is_text = not (is_numeric(values) or isinstance(values.dtype, pd.CategoricalDtype))
    return spelling_of(as_text(values)) if is_text and values.dtype != bool else None


def _dates(values: pd.Series) -> Spelling | None:
    """How a column spells dates; None of one without."""
    if pd.api.types.infer_dtype(values, skipna=True) in DATES:
        return Spelling(dates=f"{TYPED} {getattr(values.dtype, 'tz', None) or ''}".strip())
    spelling = _spelling(values)
    if not (is_numeric(values) or spelling):
        return spelling_of_dates(as_text(values))
    numbers = as_numbers(values, spelling)
    form = format_of_numbers(str(values.name), numbers[np.isfinite(numbers)])
    return with_marks(values, form) if form else None


def _date(name: str, values: pd.Series, spelling: Spelling) -> list[Column]:
    """The time elapsed and the cyclic parts that the table is long enough to show."""
    form, dates = spelling.dates, read_dates(values, spelling.dates)
    parts = parts_of(dates)
    elapsed = parts["elapsed"]
    _check_any(name, np.isfinite(elapsed).sum())
    fills = fill_values(elapsed[np.isfinite(elapsed)], seems=is_unlikely)
    is_missing = np.isnan(elapsed) | np.isin(elapsed, fills)
    _warn_of_fills(name, [f"{pd.to_datetime(v, unit='s'):%F}" for v in fills], elapsed, fills)
    shared: Any = {"spelling": form, "marks": spelling.marks or None, "fills": fills or None}
    shared |= {"missing": float(is_missing.mean()), "why": f"dates ({form})"}
    columns = []
    for part, numbers in parts.items():
        values_shown, counts = np.unique(numbers[~is_missing], return_counts=True)
        if part == "elapsed":
            learned = learn_numbers(name, numbers[~is_missing], "continuous")
            span = np.ptp(values_shown)
        elif span < SPANS[part] or len(values_shown) == 1 or not is_closed(counts):
            continue
        elif part == "weekday" and dates.dt.day.nunique() == 1:
            continue  # months, quarters, years
        else:
            bounds = tuple(values_shown)
            learned = {"kind": "discrete", "lows": bounds, "highs": bounds}
        columns.append(Column(name, **learned | shared, part=part))
    return columns


def _warn_of_fills(
    name: str, shown: list[str], numbers: np.ndarray, fills: tuple[float, ...]
) -> None:
    if fills:
        warn(
            f"column {name!r}: {', '.join(shown)} in {np.isin(numbers, fills).mean():.1%} of the "
            "rows stands far from all else and is taken as missing"
        )


def _why_left_out(values: pd.Series) -> str | None:
    """Why a column that nobody has spoken of is no feature; None if it is one."""
    name, num_data = str(values.name), int(values.notna().sum())
    if not num_data and isinstance(values.name, str) and INDEX.fullmatch(name):
        return "it has neither a name nor an entry"
    spelling = _spelling(values)
    numbers = as_numbers(values, spelling) if is_numeric(values) or spelling else np.empty(0)
    numbers = numbers[np.isfinite(numbers)]
    is_whole = len(numbers) > 0 and (numbers == np.floor(numbers)).all()
    if not len(numbers) or (is_whole and NAME.fullmatch(name)):
        num_single = int((as_text(values).value_counts() == 1).sum())
        if num_single > max(ONE_OFF * num_data, FEWEST_NAMES):
            return (
                f"it holds a text of its own in {num_single} of {num_data} rows, as identifiers "
                "and free text do, and most of fresh rows would be never seen"
            )
    if len(numbers) < FEWEST_NAMES or not is_whole:
        return None
    if isinstance(values.name, str) and INDEX.fullmatch(name) and len(np.unique(numbers)) > 2:
        return "it holds row numbers, by its name"
    if len(np.unique(numbers)) < len(numbers):
        return None
    in_order = as_numbers(values.sort_index().dropna(), spelling)
    is_count = (np.diff(in_order) > 0).all() or np.ptp(numbers) < 2 * len(numbers)
    return "its whole numbers count the rows" if is_count else None

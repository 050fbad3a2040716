"""Dates and times in whatever form, and the numbers that are learned of them."""

import re
import warnings
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from pyro_vaeflow.tables.number_texts import ENOUGH, MARKS, WORDS, Spelling

DATES = ("datetime64", "datetime", "date", "time", "period")  # what pandas says a column holds
TYPED = "dtype"  # the format of what is dates by its type
ISO = "ISO8601"
TIMES = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p")
CLOCKS = ("", *(f" {time}" for time in TIMES if "%f" not in time))
DAYS = "%d.%m.%y %d/%m/%y %m/%d/%y %d-%m-%y %d-%b-%y %d/%m/%Y %m/%d/%Y %d-%b-%Y %Y-%m-%d".split()
MONTHS = ("%b-%y", "%b-%Y", "%b %Y", "%B %Y", "%m/%Y", "%m.%Y", "%m-%Y", "%Y/%m")
NOT_GUESSED = (
    *(day + clock for day in DAYS for clock in CLOCKS),
    *(*MONTHS, "%G-W%V-%u", "%d/%b/%Y:%H:%M:%S"),  # weeks of ISO 8601, logs of web servers
)
# Whole numbers that are dates, by their digits.
DIGITS = {8: "%Y%m%d", 6: "%Y%m", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
EPOCHS = {"s": 1e9, "ms": 1e12, "us": 1e15, "ns": 1e18}  # September 2001 in each unit
SERIAL = "days since 1899-12-30"  # as spreadsheets count; here those from 1982 to 2064
SERIALS = (30_000, 60_000)
YEARS = re.compile(r"(?i)(.*[^a-z])?(year|yr|jahr)([^a-z].*)?")  # names of a column of years
TIMELY = re.compile(r"(?i)(date|time|stamp|epoch|_at$|_ts$|^ts$|_on$)")
TRIED = 50  # texts whose format is guessed
FEWEST = 5  # distinct whole numbers, or that all are dates may be chance
ZONE = r"([T :]\d\d?:[\d:.]*(?: ?[APap][Mm])?)\s*(Z|[A-Z]{3,4}|[+-]\d\d:?\d\d)$"
QUARTER = re.compile(r"(?i)(?=.*?q([1-4]))(?=.*?(\d{4}))(q\d[-/ ]?\d{4}|\d{4}[-/ ]?q\d)$")
WEEK = r"^(\d{4})-?W(\d\d)$"
DAY, YEAR = 86_400.0, 31_556_952.0
EPOCH = pd.Timestamp(0).as_unit("us")
# Part of a date -> how long a table must be for it to say something, in seconds.
SPANS = {"elapsed": 0.0, "hour": 2 * DAY, "weekday": 14 * DAY, "month": 365 * DAY}


def spelling_of_dates(text: pd.Series) -> Spelling | None:
    """The format of a column of texts that are dates or times; None if they are something else.

    Day before month where both would do.

    Example:
        >>> spelling_of_dates(pd.Series(["2024-01-31", "2024-02-01"])).dates
        'ISO8601'
        >>> spelling_of_dates(pd.Series(["31.01.2024", "01.02.2024"])).dates
        '%d.%m.%Y'
    """
    distinct = pd.Series(_as_text(text).dropna().unique())
    tried = distinct[:: max(1, len(distinct) // TRIED)]  # not the first days of a month alone
    seem = tried.str.contains(r"(?i)\d.*[-/.:, qw]|[-/., q].*\d", regex=True)
    if not len(tried) or seem.mean() <= ENOUGH:
        return None
    guess = pd.tseries.api.guess_datetime_format
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an order that pandas would not guess
        guesses = {guess(text, dayfirst=first): None for first in (True, False) for text in tried}
    forms = (ISO, *TIMES, *NOT_GUESSED, *guesses)
    iso = _parsed(_as_text(tried), ISO)
    counts = {form: _parsed(tried, form).fillna(iso).count() for form in forms if form}
    best = max(counts, key=lambda form: counts[form])
    return with_marks(text, best) if read_dates(distinct, best).notna().mean() >= ENOUGH else None


def with_marks(values: pd.Series, form: str) -> Spelling:
    """The format, with entries that recur and are no dates: they stand for missing ones."""
    _, is_unread = dates_of(values, Spelling(dates=form))
    counts = _as_text(values)[is_unread].value_counts()
    return Spelling(dates=form, marks=tuple(counts[counts > 1].index[:MARKS]))


def dates_of(values: pd.Series, spelling: Spelling) -> tuple[pd.Series, np.ndarray]:
    """Dates as `read_dates` has them, and which entries are none that stand for no date."""
    dates, text = read_dates(values, spelling.dates), _as_text(values)
    is_known = text.isna() | text.str.lower().isin(WORDS) | text.isin(spelling.marks)
    return dates, (dates.isna() & ~is_known).to_numpy(dtype=bool)


def format_of_numbers(name: str, numbers: np.ndarray) -> str | None:
    """The format of whole numbers that are dates, 20241231 say, or seconds since 1970.

    Years, seconds and a spreadsheet's days are no dates to see: the column's name must say so.

    Example:
        >>> format_of_numbers("posted", 20240101 + np.arange(9))
        '%Y%m%d'
    """
    distinct = np.unique(numbers)
    if not len(distinct) or not (distinct == np.floor(distinct)).all() or distinct[0] < 0:
        return None
    if YEARS.fullmatch(name) and distinct[0] >= 1900 and distinct[-1] <= 2100:
        return "%Y"
    if len(distinct) < FEWEST:
        return None
    sizes = pd.Series(distinct).map(lambda v: len(f"{v:.0f}"))
    form = DIGITS.get(int(sizes.median()))
    if form is not None:
        years = read_dates(pd.Series(distinct), form).dt.year
        if years.isin([*range(1900, 2101), 9999]).mean() >= ENOUGH and years.min() < 9999:
            return form
    limits = {SERIAL: SERIALS, **{unit: (start, 2.5 * start) for unit, start in EPOCHS.items()}}
    for form, (start, stop) in limits.items() if TIMELY.search(name) else ():
        if start <= distinct[0] and distinct[-1] < stop:
            return form
    return None


def read_dates(values: pd.Series, form: str) -> pd.Series:
    """Dates without a time zone, as clocks show them; NaT where missing or of no such format.

    Dates in the form of ISO 8601 are read whatever the format.

    Args:
        form: what `spelling_of_dates` or `format_of_numbers` gave, or `TYPED`.
    """
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        zone = form.removeprefix(TYPED).strip()  # of training, if it had one
        return (values.dt.tz_convert(zone) if zone else values).dt.tz_localize(None)
    if isinstance(values.dtype, pd.PeriodDtype):
        return values.dt.to_timestamp()
    if pd.api.types.is_datetime64_dtype(values):
        return values
    if form in (*EPOCHS, SERIAL):
        options: Any = {"origin": SERIAL[-10:], "unit": "D"} if form == SERIAL else {"unit": form}
        return pd.to_datetime(pd.to_numeric(values, errors="coerce"), errors="coerce", **options)
    text = _as_text(values)
    forms = (*TIMES, ISO) if form.startswith(TYPED) else dict.fromkeys([form, ISO])
    return reduce(pd.Series.fillna, [_parsed(text, form) for form in forms])


def is_unlikely(elapsed: float) -> bool:
    """Whether a date, in seconds since 1970, is one that stands for none: 1900, 1970, 9999."""
    return elapsed == 0.0 or not -68 * YEAR < elapsed < 230 * YEAR


def _parsed(text: pd.Series, form: str) -> pd.Series:
    return pd.to_datetime(text, format=form, errors="coerce").astype("datetime64[us]")


def _as_text(values: pd.Series) -> pd.Series:
    """Texts without spaces around them and a time zone; of quarters and weeks the first day."""
    if pd.api.types.is_numeric_dtype(values):
        values = values.map(lambda v: f"{v:.0f}", na_action="ignore")
    place, distinct = pd.factorize(values.astype("string"))
    text = pd.Series(distinct, dtype="string").str.strip().str.replace(ZONE, r"\1", regex=True)
    text = text.str.replace(WEEK, r"\1-W\2-1", regex=True)
    text = text.str.replace(QUARTER, lambda m: f"{m[2]}-{3 * int(m[1]) - 2:02}", regex=True)
    return pd.Series(text.array.take(place, allow_fill=True), values.index, name=values.name)


def parts_of(dates: pd.Series) -> dict[str, np.ndarray]:
    """Part -> numbers ``(num_data,)``, NaN where missing: seconds since 1970, hour, weekday, month.

    Example:
        >>> {k: v.tolist() for k, v in parts_of(pd.Series(pd.to_datetime(["1970-01-02"]))).items()}
        {'elapsed': [86400.0], 'hour': [0.0], 'weekday': [4.0], 'month': [1.0]}
    """
    dates = dates.astype("datetime64[us]")  # which has the year 9999
    parts: dict[str, Any] = {"elapsed": (dates - EPOCH) / pd.Timedelta(seconds=1)}
    parts |= {"hour": dates.dt.hour, "weekday": dates.dt.day_of_week, "month": dates.dt.month}
    return {part: values.to_numpy(np.float64, na_value=np.nan) for part, values in parts.items()}

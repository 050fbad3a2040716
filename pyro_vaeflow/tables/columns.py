"""What a column of a mixed table holds, learned on training rows, and its numbers in a tensor.

A row of a mixed table is one vector with an entry a column: the code of a level, 0 for a value that
no training row shows, or a standardised number; NaN where the entry is missing.
"""

import math
import warnings
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

from pyro_vaeflow.validation import Checked, ConfigError, setting

KINDS = ("categorical", "discrete", "continuous", "positive")
POINT_MASS = 0.5  # a share of the rows in one value: above it a numeric column is discrete ...
NEW_MASS = 0.01  # ... if so few fresh rows at most have a value that no training row shows
MAX_LEVELS = 512
ONE_OFF = 0.5  # a share of the rows with a text of their own: above it new rows have new ones
FEWEST_NAMES = 20  # such rows, or they are chance
HEAVY = 0.5  # nats a row by which a log-normal fits better than a normal: its sigma is then 0.8
GROUP_MASS = 1 / 32  # of a group of neighbouring numbers, unless one number alone has more
FAR = 1e6  # beyond it standardised numbers are all alike: their squares stay finite in float32
# What pandas says that a column holds.
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")
DATES = ("datetime64", "datetime", "date", "time", "timedelta64", "timedelta", "period")


@dataclass(frozen=True)
class Column(Checked):
    """One column: its kind and what the training rows showed of it.

    Args:
        name: of the user's column.
        kind: ``categorical``: `levels` are texts; ``discrete``: numbers, level j is the interval
            ``[lows[j], highs[j]]``, often one value; ``continuous``: a number, standardised;
            ``positive``: a number above 0, whose logarithm is standardised, for heavy tails. Under
            a normal head it is log-normal, in nats of log x.
        levels: of a categorical column, code 1 first.
        lows, highs: of a discrete column, ascending.
        loc, scale: of a continuous column, or of a positive one's logarithms.
    """

    name: str
    kind: str = setting(choices=KINDS)
    levels: tuple[str, ...] | None = None
    lows: tuple[float, ...] | None = setting(None)
    highs: tuple[float, ...] | None = setting(None)
    loc: float = setting(0.0)
    scale: float = setting(1.0, above=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [len(part or ()) for part in (self.levels, self.lows, self.highs)]
        shown = [bool(size) for size in sizes]
        needed = [self.kind == "categorical"] + 2 * [self.kind == "discrete"]
        if shown != needed or sizes[1] != sizes[2]:
            raise ConfigError(
                f"column {self.name!r}: a categorical column has levels, a discrete one as many "
                f"lows as highs, any other none; got {self.kind} with {sizes} of the three"
            )
        bounds = [
            bound for pair in zip(self.lows or (), self.highs or (), strict=True) for bound in pair
        ]
        if bounds != sorted(bounds) or len(set(self.levels or ())) != sizes[0]:
            raise ConfigError(
                f"column {self.name!r}: levels must be distinct, and their bounds ascending"
            )

    @property
    def num_levels(self) -> int:
        """Codes from 0, the novel value, to ``num_levels - 1``; 0 of a column without levels."""
        levels = self.levels or self.lows
        return 1 + len(levels) if levels else 0

    def encode(self, values: pd.Series) -> np.ndarray:
        """Codes or standardised numbers of the values, float64 ``(num_data,)``; NaN is missing.

        Raises:
            ValueError: the column is one of numbers and a value is none.
            TypeError: the values are dates, complex numbers or containers.

        Warns:
            UserWarning: the column is one of texts, and the values are numbers.
        """
        check_values(values)
        if self.kind == "categorical":
            text = as_text(values)
            self._warn_of_numbers(values)
            codes = pd.Index(self.levels or (), dtype="string").get_indexer(pd.Index(text)) + 1.0
            return np.where(text.isna(), np.nan, codes)
        numbers = as_numbers(values)
        if self.kind == "positive":  # 0 and below are as far away as a number can be
            with np.errstate(divide="ignore"):
                numbers = np.log(np.maximum(numbers, 0.0))
        if not self.num_levels:
            with np.errstate(over="ignore"):  # to infinity, and so to FAR
                return np.clip((numbers - self.loc) / self.scale, -FAR, FAR)
        place = np.searchsorted(np.array(self.lows), numbers, side="right")
        inside = numbers <= np.array([-np.inf, *(self.highs or ())])[place]
        return np.where(np.isnan(numbers), np.nan, np.where(inside, place, 0.0))

    def _warn_of_numbers(self, values: pd.Series) -> None:
        """Numbers where training had texts: more often another dtype than a row that is odd."""
        levels = self.levels or ()
        if _is_number_dtype(values) and values.notna().any() and not any(map(_spells, levels)):
            warnings.warn(
                f"column {self.name!r} held texts in training, such as {levels[0]!r}, and holds "
                f"numbers now ({values.dtype}): all are taken as never seen. Convert it to the "
                "dtype of training",
                stacklevel=2,
            )


def learn_column(values: pd.Series, kind: str | None = None) -> Column:
    """The column of training values ``(num_data,)``; `kind` is found unless it is given.

    A numeric column is discrete if more than half of its entries are one value and a fresh entry is
    new with a probability of at most 0.01, by Good and Turing's estimate: the share of entries
    whose value occurs once. Constant and binary columns are, too. Other numbers are positive if all
    are above 0 and a log-normal fits them better than a normal, by half a nat a row and by two
    standard errors: of heavy tails a few rows set the standard deviation. The rest are continuous,
    and what is not a number is categorical.

    References:
        G. Box, D. Cox, An analysis of transformations, Journal of the Royal Statistical Society B
        26, 1964, section 3: the likelihoods of a normal x and of a normal log x.
        Q. Vuong, Likelihood ratio tests for model selection and non-nested hypotheses, Econometrica
        57, 1989, eq. (5.6): the standard error of their mean difference.
        I. J. Good, The population frequencies of species and the estimation of population
        parameters, Biometrika 40, 1953.

    Raises:
        ValueError: the kind is unknown or does not suit the values, or there is no value at all.
        TypeError: the column holds dates or complex numbers.

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
    if kind == "categorical" or (kind is None and not is_numeric(values)):
        text = as_text(values).dropna()
        _check_any(name, len(text))
        rows_of = text.value_counts()
        levels = sorted(rows_of.index)
        chosen = kind is not None or isinstance(values.dtype, pd.CategoricalDtype)
        if len(levels) > 2 and not chosen and all(map(_spells, levels)):
            warnings.warn(
                f"column {name!r} holds texts that spell numbers, and they are taken as categories;"
                " convert it with pd.to_numeric, or say what it is with kinds",
                stacklevel=2,
            )
        num_single = int((rows_of == 1).sum())
        if num_single > max(ONE_OFF * len(text), FEWEST_NAMES) and not chosen:
            warnings.warn(
                f"column {name!r} holds a text of its own in {num_single} of {len(text)} rows: in "
                "fresh rows most are never seen, and so odd; leave ids out, give dates as numbers",
                stacklevel=2,
            )
        return Column(name, "categorical", levels=tuple(levels))
    numbers = as_numbers(values)
    numbers = numbers[np.isfinite(numbers)]
    _check_any(name, len(numbers))
    found, counts = np.unique(numbers, return_counts=True)
    if pd.api.types.is_integer_dtype(values) and len(found) < values.nunique():
        warnings.warn(
            f"column {name!r} holds whole numbers that float64 does not tell apart, such as "
            f"{values.max()}; subtract a constant, or say kinds={{{name!r}: 'categorical'}} of ids",
            stacklevel=2,
        )
    if kind is None:
        closed = counts.max() > POINT_MASS * len(numbers) and _is_closed(counts)
        closed = closed or len(found) <= 2  # constant or binary
        kind = "discrete" if closed else "positive" if _is_heavy(numbers) else "continuous"
    if kind == "discrete":
        lows, highs = _groups(found, counts)
        return Column(name, "discrete", lows=tuple(lows), highs=tuple(highs))
    if kind == "positive":
        if (least := numbers.min()) <= 0.0:
            raise ValueError(
                f"column {name!r} is to be positive and holds {least:g}; choose continuous, or add "
                "a constant to it"
            )
        numbers = np.log(numbers)
    loc, scale = _loc_scale(numbers)
    return Column(name, kind, loc=loc, scale=scale)


def check_values(values: pd.Series) -> None:
    """Refuses what is neither numbers nor texts; categories of anything are texts.

    Raises:
        TypeError: the column holds dates, complex numbers or containers.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        return
    what = pd.api.types.infer_dtype(values, skipna=True)
    name = str(values.name)
    if what in DATES:
        raise TypeError(
            f"column {name!r} holds dates or times; give numbers that matter: the hour, the days "
            "since a fixed date"
        )
    if what == "complex":
        raise TypeError(f"column {name!r} holds complex numbers; give real and imaginary columns")
    if what.startswith(("mixed", "unknown")):
        for value in values:
            if not pd.api.types.is_scalar(value):
                raise TypeError(
                    f"column {name!r} holds a value of type {type(value).__name__}; give one number"
                    " or text an entry"
                )


def as_text(values: pd.Series) -> pd.Series:
    """Values as texts; missing ones stay missing. A whole number has one text in every dtype.

    All its digits, in a dtype of integers: ids of 16 digits are no float64.

    Raises:
        ValueError: a text is none that Unicode can hold: bytes in another encoding, half a pair.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = as_text(pd.Series(values.cat.categories.astype(object), name=values.name))
        return pd.Series(levels.array.take(values.cat.codes.to_numpy(), allow_fill=True))
    if _is_number_dtype(values) and not pd.api.types.is_integer_dtype(values):
        values = pd.Series(as_numbers(values), dtype="Float64").astype(object)
    try:
        if values.dtype == object:  # a number has the text that it has in a column of numbers
            values = values.map(_text, na_action="ignore")
        return values.astype("string")
    except UnicodeError as error:
        raise ValueError(
            f"column {str(values.name)!r} holds texts that are not UTF-8: {error}; decode them"
        ) from error


def is_numeric(values: pd.Series) -> bool:
    """Whether a column is one of numbers, in any dtype; booleans and texts are categories."""
    if values.dtype == object:
        return pd.api.types.infer_dtype(values, skipna=True) in NUMBERS
    return _is_number_dtype(values)


def as_numbers(values: pd.Series) -> np.ndarray:
    """Values as float64, NaN where missing.

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


def _is_number_dtype(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _text(value: Any) -> Any:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        return value
    if isinstance(value, Integral) or float(value).is_integer():
        return str(int(value))  # type: ignore[arg-type]  # Real has no __int__, its kinds do
    return f"{float(value):.15g}"


def _spells(level: str) -> bool:
    """Whether a text is a number's."""
    try:
        float(level)
    except ValueError:
        return False
    return True


def _check_any(name: str, count: int) -> None:
    if not count:
        raise ValueError(f"column {name!r} has no finite value in the training rows; leave it out")


def _loc_scale(numbers: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; 1 for what rounding leaves of a constant."""
    # By a power of two, which rounds nothing: sums of squares of any finite numbers stay finite.
    power = math.frexp(np.abs(numbers).max())[1]
    near_one = np.ldexp(numbers, -power)
    loc, scale = (math.ldexp(float(v), power) for v in (near_one.mean(), near_one.std()))
    return loc, 1.0 if scale <= 1e-12 * abs(loc) else scale


def _is_closed(counts: np.ndarray) -> bool:
    """Whether fresh rows hardly have values that these do not show, by Good and Turing."""
    return bool((counts == 1).sum() <= NEW_MASS * counts.sum())


def _is_heavy(numbers: np.ndarray) -> bool:
    """Whether a log-normal fits numbers that differ so much better than a normal: `HEAVY`."""
    if numbers.min() <= 0.0 or numbers.max() < 2.0 * numbers.min():  # log is a line there
        return False
    logs = np.log(numbers)
    (loc, scale), (log_loc, log_scale) = _loc_scale(numbers), _loc_scale(logs)
    log_normal = -0.5 * ((logs - log_loc) / log_scale) ** 2 - math.log(log_scale) - logs
    gain = log_normal + 0.5 * (numbers / scale - loc / scale) ** 2 + math.log(scale)
    return bool(gain.mean() >= max(HEAVY, 2.0 * gain.std() / math.sqrt(len(gain))))


def _groups(found: np.ndarray, counts: np.ndarray) -> tuple[list[float], list[float]]:
    """The levels of distinct numbers: each its own, or groups where they fill their range.

    Groups meet if fresh rows may have values between them.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # infinite gaps are wide ones
        gaps = np.diff(found)
        lattice = (found[-1] - found[0]) / gaps.min() + 1 if len(found) > 1 else 1
    closed = _is_closed(counts)
    sparse = closed and len(found) < 0.5 * lattice  # a value between two seen ones is news
    if len(found) <= MAX_LEVELS and (sparse or len(found) <= 1 / GROUP_MASS):
        return found.tolist(), found.tolist()
    # Between the share of the rows, in which rare values vanish, and that of the distinct values.
    mass = (counts / counts.sum() + 1 / len(found)) / 2
    lows, highs, used = [found[0]], [found[0]], mass[0]
    for value, part in zip(found[1:], mass[1:], strict=True):
        if used + part > GROUP_MASS:
            lows.append(value)
            highs.append(value)
            used = 0.0
        highs[-1], used = value, used + part
    if not closed:
        lows[1:] = highs[:-1] = [0.5 * a + 0.5 * b for a, b in zip(highs, lows[1:], strict=False)]
    return [float(v) for v in lows], [float(v) for v in highs]

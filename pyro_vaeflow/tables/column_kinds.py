"""Kinds of columns, learned from training values: one function chooses, one a kind learns."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd

from pyro_vaeflow.tables.column_values import (
    as_numbers,
    as_text,
    check_values,
    is_numeric,
    spells_number,
)
from pyro_vaeflow.tables.columns import KINDS, Column

POINT_MASS = 0.5  # a share of the rows in one value: above it a numeric column is discrete ...
NEW_MASS = 0.01  # ... if so few fresh rows at most have a value that no training row shows
MAX_LEVELS = 512
ONE_OFF = 0.5  # a share of the rows with a text of their own: above it new rows have new ones
FEWEST_NAMES = 20  # such rows, or they are chance
HEAVY = 0.5  # nats per row by which a log-normal fits better than a normal: its sigma is then 0.8
GROUP_MASS = 1 / 32  # of a group of neighbouring numbers, unless one number alone has more


def learn_column(values: pd.Series, kind: str | None = None) -> Column:
    """The column of training values ``(num_data,)``; `kind` is chosen unless it is given.

    A numeric column is discrete if more than half of its entries are one value and a fresh entry is
    new with a probability of at most 0.01, by Good and Turing's estimate: the share of entries
    whose value occurs once. Constant and binary columns are, too. Other numbers are positive if all
    are above 0 and a log-normal fits them better than a normal, by half a nat per row and by two
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
        if kind is None and not isinstance(values.dtype, pd.CategoricalDtype):
            _warn_of_texts(name, text)
        return Column(name, "categorical", levels=tuple(sorted(text.unique())))
    numbers = as_numbers(values)
    numbers = numbers[np.isfinite(numbers)]
    _check_any(name, len(numbers))
    if pd.api.types.is_integer_dtype(values) and len(np.unique(numbers)) < values.nunique():
        warnings.warn(
            f"column {name!r} holds whole numbers that float64 does not tell apart, such as "
            f"{values.max()}; subtract a constant, or say kinds={{{name!r}: 'categorical'}} of ids",
            stacklevel=2,
        )
    return OF_NUMBERS[kind or _kind_of(numbers)](name, numbers)


def _discrete(name: str, numbers: np.ndarray) -> Column:
    """Each number a level, or groups of neighbours, which meet if there may be numbers between."""
    values, counts = np.unique(numbers, return_counts=True)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite gaps are wide ones
        num_steps = np.ptp(values) / np.diff(values).min() + 1 if len(values) > 1 else 1
    is_closed = _is_closed(counts)
    is_sparse = is_closed and len(values) < 0.5 * num_steps  # a value between two is unseen
    if len(values) <= MAX_LEVELS and (is_sparse or len(values) <= 1 / GROUP_MASS):
        return Column(name, "discrete", lows=tuple(values), highs=tuple(values))
    # Between the share of the rows, in which rare values vanish, and that of the distinct values.
    mass = (counts / counts.sum() + 1 / len(values)) / 2
    first, used = [0], mass[0]  # places of the groups' first values
    for place in range(1, len(values)):
        if used + mass[place] > GROUP_MASS:
            first.append(place)
            used = 0.0
        used += mass[place]
    lows, highs = values[first], values[[*(place - 1 for place in first[1:]), -1]]
    if not is_closed:
        lows[1:] = highs[:-1] = 0.5 * highs[:-1] + 0.5 * lows[1:]
    return Column(name, "discrete", lows=tuple(lows), highs=tuple(highs))


def _continuous(name: str, numbers: np.ndarray) -> Column:
    loc, scale = _loc_scale(numbers)
    return Column(name, "continuous", loc=loc, scale=scale)


def _positive(name: str, numbers: np.ndarray) -> Column:
    if (least := numbers.min()) <= 0.0:
        raise ValueError(
            f"column {name!r} is to be positive and holds {least:g}; choose continuous, or add "
            "a constant to it"
        )
    loc, scale = _loc_scale(np.log(numbers))
    return Column(name, "positive", loc=loc, scale=scale)


OF_NUMBERS: dict[str, Callable[[str, np.ndarray], Column]] = {
    "discrete": _discrete,
    "continuous": _continuous,
    "positive": _positive,
}


def _kind_of(numbers: np.ndarray) -> str:
    _, counts = np.unique(numbers, return_counts=True)
    has_point_mass = counts.max() > POINT_MASS * len(numbers)
    if len(counts) <= 2 or (has_point_mass and _is_closed(counts)):  # constant, binary, counts
        return "discrete"
    return "positive" if _is_heavy(numbers) else "continuous"


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


def _loc_scale(numbers: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; 1 for what rounding leaves of a constant."""
    # By a power of two, which rounds nothing: sums of squares of any finite numbers stay finite.
    power = math.frexp(np.abs(numbers).max())[1]
    near_one = np.ldexp(numbers, -power)
    loc, scale = (math.ldexp(float(v), power) for v in (near_one.mean(), near_one.std()))
    return loc, 1.0 if scale <= 1e-12 * abs(loc) else scale


def _check_any(name: str, count: int) -> None:
    if not count:
        raise ValueError(f"column {name!r} has no finite value in the training rows; leave it out")


def _warn_of_texts(name: str, text: pd.Series) -> None:
    """Texts that are no categories, though nobody has said what they are."""
    counts = text.value_counts()
    if len(counts) > 2 and all(map(spells_number, counts.index)):
        warnings.warn(
            f"column {name!r} holds texts that spell numbers, and they are taken as categories;"
            " convert it with pd.to_numeric, or say what it is with kinds",
            stacklevel=3,
        )
    num_single = int((counts == 1).sum())
    if num_single > max(ONE_OFF * len(text), FEWEST_NAMES):
        warnings.warn(
            f"column {name!r} holds a text of its own in {num_single} of {len(text)} rows: in "
            "fresh rows most are never seen, and so anomalies; leave ids out, give dates as "
            "numbers",
            stacklevel=3,
        )

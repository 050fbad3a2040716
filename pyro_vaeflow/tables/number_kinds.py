"""Kinds of numbers: which one training values show, and a column of each."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from pyro_vaeflow.tables.columns import logs
from pyro_vaeflow.validation import warn

POINT_MASS = 0.5  # a share of the rows in one value: above it a numeric column is discrete ...
NEW_MASS = 0.01  # ... if so few fresh rows at most have a value that no training row shows
MAX_LEVELS = 512
FEW_LEVELS = 32  # of numbers that recur, half of which may lie side by side; of more a quarter
HEAVY = 0.5  # nats per row by which a log-normal fits better than a normal: its sigma is then 0.8
FEW, MORE = 0.005, 0.05  # shares of entries that may be 0 or below in a column of heavy tails
GROUP_MASS = 1 / 32  # of a group of neighbouring numbers, unless one number alone has more
WIDE = 5.0  # standard deviations over that of the middle: above it few entries set the former
BEYOND = 20.0  # of the middle's standard deviations: such entries are not learned from ...
STRAY = 0.02  # ... if there are no more of them, or one alone
FEWEST = 20  # entries, to tell what lies astray
FAR_BELOW = -99.0  # beside numbers from 0 on
FILL = re.compile(r"-?9{2,}(\.9+)?|-?1e\+?\d\d+|-?(32767|32768|65535|2147483647|2147483648)")


def learn_numbers(name: str, numbers: np.ndarray, kind: str | None) -> dict[str, Any]:
    """What `Column` is told of finite numbers, learned from those that are not astray."""
    chosen, why = (kind, "as told") if kind else _kind_of(numbers)
    inside = np.ones(len(numbers), dtype=bool)
    if chosen != "discrete":
        inside = _inside(numbers)
        if kind is None:  # a few entries far away make no heavy tail
            chosen, why = _kind_of(numbers[inside])
        if chosen == "positive" and (unit := _unit(numbers)) is not None:
            inside = _inside(logs(numbers, unit))
    if count := (~inside).sum():
        far = numbers[~inside]
        warn(
            f"column {name!r}: {count} of {len(numbers)} entries, such as "
            f"{far[np.abs(far).argmax()]:g}, lie far beyond the others, from "
            f"{numbers[inside].min():g} to {numbers[inside].max():g}, and are not learned from"
        )
    numbers = numbers[inside]
    limits = {"low": float(numbers.min()), "high": float(numbers.max())}
    return {"kind": chosen, "why": why, **limits, **OF_NUMBERS[chosen](name, numbers)}


def _discrete(name: str, numbers: np.ndarray) -> dict[str, Any]:
    """Each number a level, or groups of neighbours, which meet if there may be numbers between."""
    values, counts = np.unique(numbers, return_counts=True)
    closed = is_closed(counts)
    is_sparse = closed and _is_sparse(values)  # a value between two is unseen
    if len(values) <= MAX_LEVELS and (is_sparse or len(values) <= 1 / GROUP_MASS):
        return {"lows": tuple(values), "highs": tuple(values)}
    # Between the share of the rows, in which rare values vanish, and that of the distinct values.
    mass = (counts / counts.sum() + 1 / len(values)) / 2
    first, used = [0], mass[0]  # places of the groups' first values
    for place in range(1, len(values)):
        if used + mass[place] > GROUP_MASS:
            first.append(place)
            used = 0.0
        used += mass[place]
    lows, highs = values[first], values[[*(place - 1 for place in first[1:]), -1]]
    if not closed:
        lows[1:] = highs[:-1] = 0.5 * highs[:-1] + 0.5 * lows[1:]
    return {"lows": tuple(lows), "highs": tuple(highs)}


def _continuous(name: str, numbers: np.ndarray) -> dict[str, Any]:
    loc, scale = _loc_scale(numbers)
    return {"loc": loc, "scale": scale}


def _positive(name: str, numbers: np.ndarray) -> dict[str, Any]:
    if (unit := _unit(numbers)) is None:
        raise ValueError(
            f"column {name!r} is to be positive and holds {numbers.min():g}; choose continuous, or "
            "add a constant to it"
        )
    loc, scale = _loc_scale(logs(numbers, unit))
    return {"loc": loc, "scale": scale, "unit": unit}


OF_NUMBERS: dict[str, Callable[[str, np.ndarray], dict[str, Any]]] = {
    "discrete": _discrete,
    "continuous": _continuous,
    "positive": _positive,
}


def _kind_of(numbers: np.ndarray) -> tuple[str, str]:
    """The kind of numbers, and why."""
    values, counts = np.unique(numbers, return_counts=True)
    if len(counts) <= 2:
        return "discrete", "at most two values"
    if is_closed(counts):
        if counts.max() > POINT_MASS * len(numbers):
            return "discrete", "one value in most rows, the others come again"
        if _is_sparse(values) and _are_apart(values):
            return "discrete", "few values that come again, with gaps between them: codes"
    if _is_heavy(numbers):
        return "positive", "heavy tails above 0: logarithms"
    return "continuous", "numbers"


def is_closed(counts: np.ndarray) -> bool:
    """Whether fresh rows hardly have values that these do not show, by Good and Turing."""
    return bool((counts == 1).sum() <= NEW_MASS * counts.sum())


def _is_sparse(values: np.ndarray) -> bool:
    """Whether distinct numbers, ascending, leave most of their range empty."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinite gaps are wide ones
        return bool(len(values) < 0.5 * (np.ptp(values) / _grid(values) + 1))


def _are_apart(values: np.ndarray) -> bool:
    """Whether few distinct numbers lie side by side: counts with a long tail mostly do."""
    is_few = len(values) <= FEW_LEVELS
    is_whole = len(values) <= MAX_LEVELS and (values == np.floor(values)).all()
    with np.errstate(over="ignore", invalid="ignore"):
        gaps = np.diff(values)
        near = 1.5 * (_grid(values) if is_few else gaps.min())
        side_by_side = ((gaps <= near).sum() - 1) / len(gaps)
    return bool((is_few or is_whole) and side_by_side < (0.5 if is_few else 0.25))


def _grid(values: np.ndarray) -> float:
    """The step of the grid of distinct whole numbers, ascending; of others the least gap."""
    gaps = np.diff(values)
    if np.abs(values).max() < 2**53 and (values == np.floor(values)).all():
        return float(np.gcd.reduce(gaps.astype(int))) or np.inf
    return float(gaps.min(initial=np.inf))


def _unit(numbers: np.ndarray) -> float | None:
    """The unit of logarithms of numbers; 0 if all are above 0, None if more than few are not."""
    is_above = numbers > 0.0
    if is_above.all():
        return 0.0
    share = (~is_above).mean()
    # More of them are no numbers of a grid from 0 on: such are side by side with the least ones.
    near = is_above & (numbers < 2.0 * numbers[is_above].min(initial=np.inf))
    is_few = share <= FEW or (share <= MORE and share > 2.0 * near.mean())
    return float(np.quantile(numbers[is_above], 0.01)) if is_few else None


def _is_heavy(numbers: np.ndarray) -> bool:
    """Whether a log-normal fits numbers that differ so much better than a normal: `HEAVY`."""
    unit = _unit(numbers)
    if unit is None or (unit == 0.0 and numbers.max() < 2.0 * numbers.min()):  # log is a line there
        return False
    y = logs(numbers, unit)
    (loc, scale), (log_loc, log_scale) = _loc_scale(numbers), _loc_scale(y)
    slope = y if unit == 0.0 else np.log(np.hypot(numbers / unit, 2.0)) + math.log(unit)
    log_normal = -0.5 * ((y - log_loc) / log_scale) ** 2 - math.log(log_scale) - slope
    gain = log_normal + 0.5 * (numbers / scale - loc / scale) ** 2 + math.log(scale)
    return bool(gain.mean() >= max(HEAVY, 2.0 * gain.std() / math.sqrt(len(gain))))


def _inside(numbers: np.ndarray) -> np.ndarray:
    """All but a few far entries that would set the standard deviation alone, a mask."""
    with np.errstate(over="ignore"):
        low, middle, high = np.quantile(numbers, [0.25, 0.5, 0.75])
        scale = (high - low) / 1.349  # that of a normal with these quartiles
        far = np.abs(numbers - middle) > BEYOND * scale
        is_wide = 0.0 < WIDE * scale < _loc_scale(numbers)[1]
    is_few = len(numbers) >= FEWEST and far.sum() <= max(1.0, STRAY * len(numbers))
    return ~far if is_wide and is_few else np.ones(len(numbers), dtype=bool)


def fill_values(
    numbers: np.ndarray, seems: Callable[[float], bool] | None = None
) -> tuple[float, ...]:
    """Numbers that recur and stand apart by more than all else spans, and look like no measurement.

    They look so by their digits, or come more often than any other of many numbers. Among numbers
    of which none is below 0, -999 stands apart however far those reach. One of few codes is a code.
    """
    values, counts = np.unique(numbers, return_counts=True)
    seem = counts > 1
    seem[seem] = [(seems or _seems_fill)(value) for value in values[seem]]
    rest = counts[~seem]
    if len(rest) >= FEWEST:
        often = max(STRAY * len(numbers), 2.0 * np.sort(rest)[-3])  # two may stand for gaps
        seem |= (counts > often) & (counts <= POINT_MASS * len(numbers))
    others = np.repeat(values[~seem], counts[~seem])
    if not seem.any() or len(np.unique(others)) < 3:
        return ()
    low, high = np.quantile(others, [0.01, 0.99])
    with np.errstate(over="ignore"):
        is_far = (values < low - 2 * (high - low)) | (values > high + 2 * (high - low))
    if others.min() >= 0.0:
        is_far |= values <= FAR_BELOW
    fills = values[seem & is_far]
    is_code = seems is None and fills.min(initial=0.0) >= 0.0 and _kind_of(others)[0] == "discrete"
    return () if is_code else tuple(fills.tolist())


def _seems_fill(value: float) -> bool:
    return FILL.fullmatch(f"{value:.15g}") is not None


def _loc_scale(numbers: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; 1 for what rounding leaves of a constant."""
    # By a power of two, which rounds nothing: sums of squares of any finite numbers stay finite.
    power = math.frexp(np.abs(numbers).max())[1]
    near_one = np.ldexp(numbers, -power)
    loc, scale = (math.ldexp(float(v), power) for v in (near_one.mean(), near_one.std()))
    return loc, 1.0 if scale <= 1e-12 * abs(loc) else scale

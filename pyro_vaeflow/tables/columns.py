"""A column of a mixed table: what it holds, as training rows showed it, and its codes or numbers.

A row of a mixed table is one vector with an entry a column, or some of a date: the code of a level,
0 for an unseen one, or a standardised number; NaN where the entry is missing.
`pyro_vaeflow.tables.column_kinds` learns columns.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyro_vaeflow.tables.calendars import SPANS, YEAR, dates_of, parts_of
from pyro_vaeflow.tables.column_values import (
    BOOLEANS,
    as_numbers,
    as_text,
    check_read,
    check_values,
    has_number_dtype,
)
from pyro_vaeflow.tables.number_texts import Spelling
from pyro_vaeflow.validation import Checked, ConfigError, setting, warn

KINDS = ("categorical", "discrete", "continuous", "positive")
LEFT_OUT = "left out"
FAR = 1e6  # beyond it standardised numbers are all alike: their squares stay finite in float32
LONG = 20 * YEAR  # past it a date is no early or late one, but far away
SLACK = 1e-3  # of a column's range, beyond it: half precision
ROUNDING = 2.0**-22  # of float32, in which the same table may come


@dataclass(frozen=True)
class Column(Checked):
    """One column: its kind and what the training rows showed of it.

    Args:
        name: of the user's column.
        kind: ``categorical``: `levels` are texts; ``discrete``: numbers, level j is the interval
            ``[lows[j], highs[j]]``, often one value; ``continuous``: a number, standardised;
            ``positive``: a number above 0, whose logarithm is standardised, for heavy tails. Under
            a normal head it is log-normal, in nats of log x. ``left out``: no feature.
        levels: of a categorical column, code 1 first.
        lows, highs: of a discrete column, ascending.
        loc, scale: of a continuous column, or of a positive one's logarithms.
        unit: of a positive column with few entries that are not above 0: in place of log x it has
            :math:`\\sinh^{-1}(x / 2u)`, which is log(x / u) of x far above u.
        part: of a date: ``elapsed``, ``hour``, ``weekday`` or ``month``.
        spelling: how texts are read: the decimal sign and the unit, or the format of dates.
        marks: texts that stand for a missing number.
        fills: numbers that do, such as -999, or dates, in seconds since 1970.
        low, high: the least and the largest number that was learned from.
        noise: of a number's standard deviation, what other columns' numbers leave unexplained.
        missing: the share of training rows without an entry.
        unseen: of the others, about that of fresh rows whose text is no level.
        why: how the kind was chosen.

    Raises:
        ConfigError: the parts do not suit the kind, or levels repeat or overlap.
    """

    name: str
    kind: str = setting(choices=(*KINDS, LEFT_OUT))
    levels: tuple[str, ...] | None = None
    lows: tuple[float, ...] | None = setting(None)
    highs: tuple[float, ...] | None = setting(None)
    loc: float = setting(0.0)
    scale: float = setting(1.0, above=0.0)
    unit: float = setting(0.0, low=0.0)
    part: str = setting("", choices=("", *SPANS))
    spelling: str = ""
    marks: tuple[str, ...] | None = None
    fills: tuple[float, ...] | None = setting(None)
    low: float | None = setting(None)
    high: float | None = setting(None)
    noise: float = setting(1.0, above=0.0)
    missing: float = setting(0.0, low=0.0, high=1.0)
    unseen: float = setting(0.0, low=0.0, high=1.0)
    why: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        levels, lows, highs = self.levels or (), self.lows or (), self.highs or ()
        sizes = [len(levels), len(lows), len(highs)]
        needed = [self.kind == "categorical", self.kind == "discrete", self.kind == "discrete"]
        if [size > 0 for size in sizes] != needed or len(lows) != len(highs):
            raise ConfigError(
                f"column {self.name!r}: a categorical column has levels, a discrete one as many "
                f"lows as highs, any other none; got {self.kind} with {sizes} of the three"
            )
        bounds = [bound for pair in zip(lows, highs, strict=True) for bound in pair]
        if bounds != sorted(bounds) or len(set(levels)) != len(levels):
            raise ConfigError(
                f"column {self.name!r}: levels must be distinct, and their bounds ascending"
            )
        if self.part and self.kind in KINDS[2:] and None in (self.low, self.high):
            raise ConfigError(f"column {self.name!r}: dates need low and high, the range learned")

    @property
    def num_levels(self) -> int:
        """Codes from 0, an unseen category, to ``num_levels - 1``; 0 of a column without levels."""
        levels = self.levels or self.lows
        return 1 + len(levels) if levels else 0

    @property
    def texts(self) -> Spelling:
        """How texts are read in a column of numbers or dates."""
        if self.part:
            return Spelling(marks=self.marks or (), dates=self.spelling)
        return Spelling(self.spelling[:1], self.marks or (), unit=self.spelling[1:])

    def encode(self, values: pd.Series) -> np.ndarray:
        """Codes or standardised numbers of the values, float64 ``(num_data,)``; NaN is missing.

        A date beyond training's range is taken as an early or late one inside it, unless it is
        both 20 years and the whole range away.

        Raises:
            ValueError: the column is one of numbers or dates and most values are none.
            TypeError: the values are dates where there were none, complex numbers or containers.

        Warns:
            UserWarning: the column is one of texts, and the values are numbers; or a few are none.
        """
        if self.kind == "categorical":
            check_values(values)
            return self._codes_of_texts(values)
        return self.code(self.numbers(values))

    def numbers(self, values: pd.Series) -> np.ndarray:
        """The values of a column that is not categorical, float64 ``(num_data,)``; see `encode`."""
        if self.part:
            return self.parts(values)[self.part]
        check_values(values)
        numbers = as_numbers(values, self.texts)
        return np.where(np.isin(numbers, self.fills or ()), np.nan, numbers)

    def parts(self, values: pd.Series) -> dict[str, np.ndarray]:
        """Part -> numbers of a column of dates, this one's and those that others have of it."""
        check_values(values, dates=True)
        dates, is_unread = dates_of(values, self.texts)
        check_read(values, is_unread, f"dates of the format {self.spelling}")
        parts = parts_of(dates)
        is_fill = np.isin(parts["elapsed"], self.fills or ())
        return {part: np.where(is_fill, np.nan, numbers) for part, numbers in parts.items()}

    def code(self, numbers: np.ndarray) -> np.ndarray:
        """Codes or standardised numbers of what `numbers` gave."""
        if self.kind == "discrete":
            return self._codes_of_numbers(numbers)
        if self.part:  # beyond the range: early or late, but not at the edge of what was learned
            low, high = self.low or 0.0, self.high or 0.0
            early, late = np.clip([self.loc - self.scale, self.loc + self.scale], low, high)
            reach = max(LONG, high - low)
            is_early = (low - reach <= numbers) & (numbers < low)
            is_late = (high < numbers) & (numbers <= high + reach)
            numbers = np.select([is_early, is_late], [early, late], numbers)
        if self.kind == "positive":  # 0 and below are as far away as a number can be
            numbers = logs(numbers, self.unit)
        with np.errstate(over="ignore"):  # to infinity, and so to FAR
            return np.clip((numbers - self.loc) / self.scale, -FAR, FAR)

    def is_new(self, numbers: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Which entries training rows did not show: unseen levels, numbers out of range."""
        if self.num_levels:
            return codes == 0.0
        low, high = (np.nan if bound is None else bound for bound in (self.low, self.high))
        slack = 0.0 if self.part else ROUNDING * max(abs(low), abs(high)) + SLACK * (high - low)
        return (numbers < low - slack) | (numbers > high + slack)

    def _codes_of_texts(self, values: pd.Series) -> np.ndarray:
        text, levels = as_text(values), self.levels or ()
        place, distinct = pd.factorize(text)
        codes = pd.Index(levels, dtype="string").get_indexer(distinct) + 1.0
        # What no level spells so: in another case, without leading zeros, another word for yes.
        truths = {BOOLEANS.get(level.lower()) for level in levels}
        words = BOOLEANS if len(truths) == len(levels) and None not in truths else {}
        keys = pd.Series(range(1, len(levels) + 1), [_key(level, words) for level in levels])
        keys = keys[~keys.index.duplicated(keep=False)]
        others = [_key(t, words) for t in distinct]
        codes = np.where(codes > 0, codes, keys.reindex(others).fillna(0.0))
        is_spelled = (codes > 0).any() or any(re.search(r"\d", level) for level in levels)
        if has_number_dtype(values) and len(distinct) and not is_spelled:
            # More often another dtype than rows that are anomalies.
            warn(
                f"column {self.name!r} held texts in training, such as {levels[0]!r}, and holds "
                f"numbers now ({values.dtype}): all are taken as never seen. Convert it to the "
                "dtype of training"
            )
        return np.append(codes, np.nan)[place]

    def _codes_of_numbers(self, numbers: np.ndarray) -> np.ndarray:
        lows, highs = np.array(self.lows), np.array(self.highs)
        with np.errstate(over="ignore", invalid="ignore"):
            gaps = np.concatenate([[np.inf], lows[1:] - highs[:-1], [np.inf]]) / 4.0
        lows = lows - np.minimum(ROUNDING * abs(lows), gaps[:-1])
        highs = highs + np.minimum(ROUNDING * abs(highs), gaps[1:])
        code = np.searchsorted(lows, numbers, side="right")
        is_inside = numbers <= np.array([-np.inf, *highs])[code]
        return np.where(np.isnan(numbers), np.nan, np.where(is_inside, code, 0.0))


def _key(text: str, words: Mapping[str, str]) -> str:
    text = text.casefold()
    return words.get(text, text.lstrip("0"))


def logs(numbers: np.ndarray, unit: float) -> np.ndarray:
    """Logarithms of numbers above 0; of any, in a unit: see `Column`."""
    if unit:
        with np.errstate(over="ignore"):
            return np.arcsinh(numbers / unit / 2.0)
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(numbers, 0.0))

"""A column of a mixed table: what it holds, as training rows showed it, and its codes or numbers.

A row of a mixed table is one vector with an entry a column: the code of a level, 0 for an unseen
one, or a standardised number; NaN where the entry is missing. `pyro_vaeflow.tables.column_kinds`
learns columns.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pyro_vaeflow.tables.column_values import (
    as_numbers,
    as_text,
    check_values,
    has_number_dtype,
    spells_number,
)
from pyro_vaeflow.validation import Checked, ConfigError, setting

KINDS = ("categorical", "discrete", "continuous", "positive")
FAR = 1e6  # beyond it standardised numbers are all alike: their squares stay finite in float32


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

    Raises:
        ConfigError: the parts do not suit the kind, or levels repeat or overlap.
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

    @property
    def num_levels(self) -> int:
        """Codes from 0, an unseen category, to ``num_levels - 1``; 0 of a column without levels."""
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
            return self._codes_of_texts(values)
        numbers = as_numbers(values)
        if self.kind == "discrete":
            return self._codes_of_numbers(numbers)
        if self.kind == "positive":  # 0 and below are as far away as a number can be
            with np.errstate(divide="ignore"):
                numbers = np.log(np.maximum(numbers, 0.0))
        with np.errstate(over="ignore"):  # to infinity, and so to FAR
            return np.clip((numbers - self.loc) / self.scale, -FAR, FAR)

    def _codes_of_texts(self, values: pd.Series) -> np.ndarray:
        text, levels = as_text(values), self.levels or ()
        if has_number_dtype(values) and text.notna().any() and not any(map(spells_number, levels)):
            # More often another dtype than rows that are anomalies.
            warnings.warn(
                f"column {self.name!r} held texts in training, such as {levels[0]!r}, and holds "
                f"numbers now ({values.dtype}): all are taken as never seen. Convert it to the "
                "dtype of training",
                stacklevel=3,
            )
        codes = pd.Index(levels, dtype="string").get_indexer(pd.Index(text)) + 1.0
        return np.where(text.isna(), np.nan, codes)

    def _codes_of_numbers(self, numbers: np.ndarray) -> np.ndarray:
        code = np.searchsorted(np.array(self.lows), numbers, side="right")
        is_inside = numbers <= np.array([-np.inf, *(self.highs or ())])[code]
        return np.where(np.isnan(numbers), np.nan, np.where(is_inside, code, 0.0))

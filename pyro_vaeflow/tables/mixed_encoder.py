"""Encoder of mixed tables: a tensor with an entry a column, learned on training rows alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pyro_vaeflow.tables.column_kinds import learn_columns
from pyro_vaeflow.tables.columns import LEFT_OUT, Column
from pyro_vaeflow.tables.frames import check_columns, check_training_frame
from pyro_vaeflow.tables.reading import Shares, warn_of

LEAST_ROWS, ENOUGH_ROWS = 10, 10_000  # the first a column, to tell what one says of another
LEAST_NOISE = 1e-3  # of a standard deviation
WIDEST = 3.0  # standard deviations


class MixedEncoder(TransformerMixin, BaseEstimator):
    """Codes of levels and standardised numbers, float32 ``(num_data, num_entries)``; NaN: missing.

    No text and no number of later rows is an error: one that no training row of a categorical or
    discrete column shows has the code 0, and ``None``, ``NaN`` and ``NA`` are missing. A date has
    some entries; identifiers have none.

    Args:
        kinds: column name -> ``categorical``, ``discrete``, ``continuous``, ``positive`` or
            ``date``, where `learn_columns` should not choose.

    Attributes:
        readings_: what the columns were taken for, in the frame's order, with those left out.
        columns_: those with an entry; what `Model` and `Guide` take.
        names_: the frame's own names of its columns.

    Example:
        >>> frame = pd.DataFrame({"kind": ["a", "b", "a"], "size": [0.0, 2.0, 4.0]})
        >>> encoder = MixedEncoder().fit(frame)
        >>> encoder.transform(pd.DataFrame({"kind": ["b", "unseen"], "size": [2.0, None]}))
        tensor([[2., 0.],
                [0., nan]])
    """

    def __init__(self, kinds: Mapping[str, str] | None = None) -> None:
        self.kinds = kinds

    def fit(self, frame: pd.DataFrame, y: Any = None) -> Self:
        """Learns the columns from training rows ``(num_data, num_columns)``; `y` is ignored.

        Raises:
            ValueError: the frame has no rows, no columns or repeated column names, a column has no
                value or none is a feature, or `kinds` names a column or kind that is not known.
            TypeError: a column holds complex numbers or containers.

        Warns:
            UserWarning: a column is left out, or not all of its entries are learned from.
        """
        check_training_frame(frame)
        kinds = self.kinds or {}
        if unknown := sorted(set(kinds) - set(frame.columns), key=str):
            raise ValueError(f"kinds names {unknown}, not columns of {list(frame.columns)}")
        self.readings_ = [
            column
            for name in frame.columns
            for column in learn_columns(frame[name], kinds.get(name))
        ]
        self.names_ = frame.columns
        self._learn_noise(frame)
        if not self.columns_:
            why = "; ".join(f"{column.name!r}: {column.why}" for column in self.readings_[:3])
            raise ValueError(
                f"no column is left to learn from ({why}); say with kinds what to keep"
            )
        return self

    def _learn_noise(self, frame: pd.DataFrame) -> None:
        """What other columns' numbers leave of each one's: by the inverse covariance's diagonal."""
        places = [j for j, c in enumerate(self.columns_) if not (c.num_levels or c.part)]
        if len(places) < 2 or len(frame) < LEAST_ROWS * len(places):
            return
        some = frame.iloc[:: 1 + len(frame) // ENOUGH_ROWS]
        rows = self.encode(some)[0].double().numpy()[:, places]
        rows = np.clip(np.nan_to_num(rows), -WIDEST, WIDEST)  # that no few rows decide
        covariance = np.cov(rows, rowvar=False, bias=True)
        covariance += np.diag(LEAST_NOISE**2 * covariance.diagonal() + 1e-12)
        left = 1.0 / np.sqrt(np.linalg.inv(covariance).diagonal() * covariance.diagonal())
        of_names = {self.columns_[j].name: float(v) for j, v in zip(places, left, strict=True)}
        self.readings_ = [replace(c, noise=of_names.get(c.name, 1.0)) for c in self.readings_]

    @property
    def columns_(self) -> list[Column]:
        """The columns with an entry in a row; a date has some."""
        return [column for column in self.readings_ if column.kind != LEFT_OUT]

    def transform(self, frame: pd.DataFrame) -> torch.Tensor:
        """Encodes rows with what `fit` learned; columns are found by name.

        Raises:
            ValueError: columns differ from those of `fit`, or a numeric one holds text.

        Warns:
            UserWarning: most entries of a column are such as no training row shows, or missing.
        """
        x, shares = self.encode(frame)
        warn_of(shares)
        return x

    def encode(
        self, frame: pd.DataFrame, is_training: bool = False
    ) -> tuple[torch.Tensor, list[Shares]]:
        """The tensor of `transform`, and what of each column is new or missing, without a warning.

        Args:
            is_training: whether entries that were not learned from, far from all others, are NaN.
        """
        check_is_fitted(self, "readings_")
        check_columns(frame, self.names_)
        rows = np.empty((len(frame), len(self.columns_)), dtype=np.float32)
        shares: list[Shares] = []
        dates: dict[str, dict[str, np.ndarray]] = {}  # a column's, which are read once
        names = {str(name): name for name in self.names_}
        for j, column in enumerate(self.columns_):
            values = frame[names[column.name]]
            if column.kind == "categorical":
                numbers = codes = column.encode(values)
            else:
                if column.part and column.name not in dates:
                    dates[column.name] = column.parts(values)
                numbers = dates[column.name][column.part] if column.part else column.numbers(values)
                codes = column.code(numbers)
            is_new = column.is_new(numbers, codes)
            if is_training and not column.num_levels:
                codes = np.where(is_new, np.nan, codes)
            rows[:, j] = codes
            shares.append(Shares.of(column, values, is_new, np.isnan(codes)))
        return torch.from_numpy(rows), shares

    def sums(self, entries: np.ndarray) -> pd.DataFrame:
        """Sums of ``(num_data, num_entries)`` over the entries of each of the frame's columns."""
        names = {str(name): name for name in self.names_}
        owners = [column.name for column in self.columns_]
        starts = [j for j, name in enumerate(owners) if not j or name != owners[j - 1]]
        columns = pd.Index([names[owners[j]] for j in starts], tupleize_cols=False)
        return pd.DataFrame(np.add.reduceat(entries, starts, axis=1), columns=columns)

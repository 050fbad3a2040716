"""Encoder of mixed tables: a tensor with one entry a column, learned on training rows alone."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pyro_vaeflow.tables.column_kinds import learn_column
from pyro_vaeflow.tables.frames import check_columns, check_training_frame


class MixedEncoder(TransformerMixin, BaseEstimator):
    """Codes of levels and standardised numbers, float32 ``(num_data, num_columns)``; NaN: missing.

    No text and no number of later rows is an error: one that no training row of a categorical or
    discrete column shows has the code 0, and ``None``, ``NaN`` and ``NA`` are missing.

    Args:
        kinds: column name -> ``categorical``, ``discrete``, ``continuous`` or ``positive``, where
            `learn_column` should not choose.

    Attributes:
        columns_: one `Column` a column, in the frame's order; what `Model` and `Guide` take.
        names_: the frame's own names of them.

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
                value, or `kinds` names a column or kind that is not known.
            TypeError: a column holds dates, complex numbers or containers.
        """
        check_training_frame(frame)
        kinds = self.kinds or {}
        if unknown := sorted(set(kinds) - set(frame.columns), key=str):
            raise ValueError(f"kinds names {unknown}, not columns of {list(frame.columns)}")
        self.columns_ = [learn_column(frame[name], kinds.get(name)) for name in frame.columns]
        self.names_ = frame.columns
        return self

    def transform(self, frame: pd.DataFrame) -> torch.Tensor:
        """Encodes rows with what `fit` learned; columns are found by name.

        Raises:
            ValueError: columns differ from those of `fit`, or a numeric one holds text.
        """
        check_is_fitted(self)
        check_columns(frame, self.names_)
        rows = np.empty((len(frame), len(self.columns_)), dtype=np.float32)
        for j, (name, column) in enumerate(zip(self.names_, self.columns_, strict=True)):
            rows[:, j] = column.encode(frame[name])
        return torch.from_numpy(rows)

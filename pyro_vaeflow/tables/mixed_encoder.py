"""A mixed table -> one tensor with an entry a column, learned on the training rows only."""

from collections.abc import Mapping
from typing import Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from pyro_vaeflow.tables.columns import learn_column
from pyro_vaeflow.tables.frames import check_frame, check_training_frame


class MixedEncoder(BaseEstimator):
    """Codes of levels and standardised numbers, float32 ``(num_data, num_columns)``; NaN: missing.

    No text and no number of test rows is an error later: one that no training row of a categorical
    or discrete column shows has the code 0, and ``None``, ``NaN`` and ``NA`` are missing.

    Args:
        kinds: column name -> ``categorical``, ``discrete``, ``continuous`` or ``positive``, where
            `learn_column` should not choose.

    Attributes:
        columns_: one `Column` a column, in the frame's order; what `Model` and `Guide` take.

    Example:
        >>> frame = pd.DataFrame({"kind": ["a", "b", "a"], "size": [0.0, 2.0, 4.0]})
        >>> encoder = MixedEncoder().fit(frame)
        >>> encoder.transform(pd.DataFrame({"kind": ["b", "unseen"], "size": [2.0, None]}))
        tensor([[2., 0.],
                [0., nan]])
    """

    def __init__(self, kinds: Mapping[str, str] | None = None) -> None:
        self.kinds = kinds

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learns the columns from training rows ``(num_data, num_columns)``.

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
        check_frame(frame)
        missing = self.names_.difference(frame.columns).tolist()
        unknown = frame.columns.difference(self.names_).tolist()
        if missing or unknown or len(frame.columns) != len(self.names_):
            raise ValueError(
                f"frame must have the columns seen in fit; missing {missing}, unknown {unknown}"
            )
        parts = zip(self.names_, self.columns_, strict=True)
        encoded = np.empty((len(frame), len(self.columns_)), dtype=np.float32)
        for place, (name, column) in enumerate(parts):
            encoded[:, place] = column.encode(frame[name])
        return torch.from_numpy(encoded)

    def fit_transform(self, frame: pd.DataFrame) -> torch.Tensor:
        """`fit`, then `transform` of the same rows."""
        return self.fit(frame).transform(frame)

"""Encoder of tables into one-hot and scaled features, learned on training rows alone."""

from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, OneHotEncoder, StandardScaler
from sklearn.utils.validation import check_is_fitted

from pyro_vaeflow.tables.column_values import check_values
from pyro_vaeflow.tables.columns import FAR
from pyro_vaeflow.tables.frames import check_columns, check_training_frame


def signed_log(x: np.ndarray) -> np.ndarray:
    """``sign(x) log(1 + |x|)``, entry by entry: log1p of numbers that are not negative.

    Example:
        >>> signed_log(np.array([0.0, 1.0, -1.0])).round(3).tolist()
        [0.0, 0.693, -0.693]
    """
    return np.sign(x) * np.log1p(np.abs(x))


SCALERS = {
    # Rows to score can lie far outside the inliers' range, where a Bernoulli "likelihood" rewards
    # them without bound: clip to [0, 1].
    "minmax": lambda: MinMaxScaler(clip=True),
    "standard": StandardScaler,
    # For counts and sizes over many decades.
    "log-minmax": lambda: make_pipeline(FunctionTransformer(signed_log), MinMaxScaler(clip=True)),
}


class TableEncoder(TransformerMixin, BaseEstimator):
    """One-hot columns of the categorical columns, then the scaled numeric ones, as float32.

    A level or a range that the training rows do not show is no error later: an unseen category is a
    block of zeros, and numbers are clipped, to [0, 1] by ``"minmax"`` and ``"log-minmax"`` and to
    +-1e6 standard deviations by ``"standard"``. Numeric dtypes are numeric columns; every other
    dtype (text, categorical, boolean) is categorical, with the levels that the rows show.

    Args:
        scaling: ``"minmax"`` to [0, 1], for Bernoulli heads, ``"log-minmax"``, which takes
            logarithms first, or ``"standard"`` to mean 0 and variance 1, for Normal heads.

    Attributes:
        feature_names_: one name a feature: ``service=http``, ``duration``.

    Example:
        >>> frame = pd.DataFrame({"size": [0.0, 5.0, 10.0], "kind": ["a", "b", "a"]})
        >>> encoder = TableEncoder().fit(frame)
        >>> encoder.feature_names_
        ['kind=a', 'kind=b', 'size']
        >>> encoder.transform(pd.DataFrame({"size": [20.0], "kind": ["unseen"]}))
        tensor([[0., 0., 1.]])
    """

    def __init__(self, scaling: str = "minmax") -> None:
        self.scaling = scaling

    def fit(self, frame: pd.DataFrame, y: Any = None) -> Self:
        """Learns levels and ranges from training rows ``(num_data, num_columns)``; `y` is ignored.

        Raises:
            ValueError: ``scaling`` is unknown, the frame has no rows, no columns or repeated column
                names, or numbers are not finite.
            TypeError: a column holds dates, complex numbers or containers.
        """
        if self.scaling not in SCALERS:
            raise ValueError(f"scaling must be one of {sorted(SCALERS)}, got {self.scaling!r}")
        check_training_frame(frame)
        is_numeric = frame.columns.isin(frame.select_dtypes("number").columns)
        self.names_ = frame.columns
        self.numeric_ = frame.columns[is_numeric].tolist()
        self._check_values(frame)
        one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
        blocks = [  # by position: scikit-learn would take whole numbers as names for positions
            ("categorical", one_hot, np.flatnonzero(~is_numeric)),
            ("numeric", SCALERS[self.scaling](), np.flatnonzero(is_numeric)),
        ]
        # An empty block would stay unfitted and have no levels to name.
        self.transformer_ = ColumnTransformer([b for b in blocks if len(b[2])]).fit(frame)
        self.feature_names_ = [*map(str, self.numeric_)]
        if not is_numeric.all():
            categories = self.transformer_.named_transformers_["categorical"].categories_
            pairs = zip(frame.columns[~is_numeric], categories, strict=True)
            levels = [f"{name}={level}" for name, levels in pairs for level in levels]
            self.feature_names_ = levels + self.feature_names_
        return self

    def transform(self, frame: pd.DataFrame) -> torch.Tensor:
        """Encodes rows with what `fit` learned: float32 ``(num_data, num_features)``.

        Raises:
            ValueError: columns differ from those of `fit`, or numbers are not finite.
        """
        check_is_fitted(self)
        check_columns(frame, self.names_)
        self._check_values(frame)
        values = self.transformer_.transform(frame[self.names_])
        return torch.as_tensor(np.clip(values, -FAR, FAR), dtype=torch.float32)

    def _check_values(self, frame: pd.DataFrame) -> None:
        for name in self.names_:
            check_values(frame[name])
        for name in self.numeric_:
            if not np.isfinite(frame[name].to_numpy(np.float64, na_value=np.nan)).all():
                raise ValueError(f"column {name!r} holds values that are missing or not finite")

"""A user's rows, taken in: a table with the columns of `fit`, and what each row counts for."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.utils import check_array, check_consistent_length, column_or_1d
from sklearn.utils.validation import validate_data

from pyro_vaeflow.tables.columns import LEFT_OUT
from pyro_vaeflow.tables.frames import as_table


def table_of(detector: Any, X: Any, reset: bool) -> pd.DataFrame:
    """The rows as a frame of their own, with the columns of `fit` and rows from 0 on.

    Args:
        detector: an estimator, whose columns these must be.
        reset: whether they become its columns.

    Raises:
        ValueError: the columns are not those of `fit`, or `X` is no table.
    """
    X = as_table(X)
    if isinstance(X, pd.DataFrame):
        X = X if reset else _with_unused(detector, X)
        try:
            validate_data(detector, X, reset=reset, skip_check_array=True)
        except ValueError as error:
            if not hasattr(detector, "feature_names_in_"):
                raise
            raise ValueError(
                f"{str(error).rstrip()} The columns of fit are in feature_names_in_: "
                "X[detector.feature_names_in_] has them in order"
            ) from error
        if not reset:
            _check_order(detector, X)
        frame = X.reset_index(drop=True)
    else:
        options: dict[str, Any] = {"dtype": None, "ensure_all_finite": False}
        X = validate_data(detector, X, reset=reset, ensure_min_samples=int(reset), **options)
        frame = pd.DataFrame(X).infer_objects()
    # By place: scikit-learn has compared the names.
    return frame if reset else frame.set_axis(detector.encoder_.names_, axis=1)


def _with_unused(detector: Any, X: pd.DataFrame) -> pd.DataFrame:
    """The table with a gap for each column that is no feature and that it lacks."""
    unused = {column.name for column in detector.encoder_.readings_ if column.kind == LEFT_OUT}
    for place, name in enumerate(getattr(detector, "feature_names_in_", ())):
        if name in unused and name not in X:
            X = X.copy(deep=False)
            X.insert(min(place, X.shape[1]), name, np.nan)
    return X


def _check_order(detector: Any, X: pd.DataFrame) -> None:
    """Compares names that scikit-learn does not: numbers and tuples."""
    names = list(detector.encoder_.names_)
    are_texts = all(isinstance(name, str) for name in X.columns)
    if not are_texts and list(X.columns) != names:
        raise ValueError(
            f"X has the columns {list(X.columns)[:9]}, and fit had {names[:9]}; X[names] has them "
            "in that order"
        )


def row_weights(sample_weight: ArrayLike, num_data: int) -> np.ndarray:
    """The weights as numbers, ``(num_data,)``.

    Raises:
        ValueError: one is negative or not finite, all are zero, or there is not one per row.
    """
    options: dict[str, Any] = {"ensure_2d": False, "input_name": "sample_weight"}
    weights = column_or_1d(check_array(sample_weight, dtype=np.float64, **options))
    check_consistent_length(weights, np.empty(num_data))
    if (weights < 0).any():
        raise ValueError(f"sample_weight must not be negative, got {weights.min():g}")
    if not weights.any():
        raise ValueError("sample_weight must not be zero for all rows")
    return weights

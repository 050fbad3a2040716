"""Tables as users have them: frames, arrays, lists, tensors; made ready, or refused by name.

scikit-learn's validation comes after it: this module does what that leaves to NumPy's guesses.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch


def as_table(X: Any) -> Any:
    """A frame as it is, with native types; lists, tensors and masked arrays as what they mean.

    Nothing of the caller's is changed. What is no table at all is left to scikit-learn to refuse.

    Raises:
        ValueError: columns are missing or share a name, or rows differ in length.
        TypeError: the tensor is sparse or has no data, or the array is a structured one.

    Example:
        >>> as_table([[1, "a"], [2, "b"]])[:, 0].tolist()  # NumPy alone would make texts of both
        [1, 2]
    """
    if isinstance(X, pd.DataFrame):
        if not len(X.columns):
            raise ValueError(f"X must have columns, got shape {X.shape}")
        # 1 and "1" would be told apart nowhere.
        _check_distinct("X", pd.Index([str(name) for name in X.columns]))
        return _with_native_types(X)
    if isinstance(X, torch.Tensor):
        return _of_tensor(X)
    if isinstance(X, list | tuple):
        return _of_lists(X)
    if isinstance(X, np.ndarray) and X.dtype.names:
        raise TypeError(f"X is a structured array of {X.dtype.names}; give pd.DataFrame(X)")
    if isinstance(X, np.ma.MaskedArray) and X.ndim == 2:
        return pd.DataFrame(X)  # masked entries are missing
    if isinstance(X, np.ndarray) and not X.dtype.isnative:
        return X.astype(X.dtype.newbyteorder("="))
    return X


def check_training_frame(frame: Any) -> None:
    """Refuses what is no frame, or has no rows, no columns or repeated column names."""
    _check_frame(frame)
    if frame.empty:
        raise ValueError(f"frame must have rows and columns, got shape {frame.shape}")
    _check_distinct("frame", frame.columns)


def check_columns(frame: Any, names: pd.Index) -> None:
    """Refuses what has not the columns that an encoder has learned, in any order."""
    _check_frame(frame)
    missing = names.difference(frame.columns).tolist()
    unknown = frame.columns.difference(names).tolist()
    if missing or unknown or len(frame.columns) != len(names):
        raise ValueError(
            f"frame must have the columns seen in fit; missing {missing}, unknown {unknown}"
        )


def _check_frame(frame: Any) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"frame must be a pandas DataFrame, got {type(frame).__name__}; pd.DataFrame makes one"
        )


def _check_distinct(argument: str, names: pd.Index) -> None:
    if not names.is_unique:
        repeated = names[names.duplicated()].unique().tolist()
        raise ValueError(
            f"{argument} must have distinct column names, got {repeated[:5]} repeatedly"
        )


def _with_native_types(frame: pd.DataFrame) -> pd.DataFrame:
    foreign = {
        name: dtype.newbyteorder("=")
        for name, dtype in frame.dtypes.items()
        if isinstance(dtype, np.dtype) and not dtype.isnative
    }
    views = {  # which pandas holds and does not compute with
        name: pd.array(pa.array(frame[name].array).to_pylist(), dtype="string")
        for name, dtype in frame.dtypes.items()
        if isinstance(dtype, pd.ArrowDtype) and dtype.pyarrow_dtype == pa.string_view()
    }
    if not (foreign or views):
        return frame
    frame = frame.astype(foreign)
    for name, texts in views.items():
        frame[name] = texts
    return frame


def _of_tensor(x: torch.Tensor) -> np.ndarray:
    if x.layout != torch.strided or x.is_meta:
        what = "has no data" if x.is_meta else f"has the layout {x.layout}"
        raise TypeError(f"X is a tensor that {what}; give a dense one, X.to_dense()")
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).numpy()  # NumPy lacks bfloat16


def _of_lists(rows: list | tuple) -> np.ndarray:
    """Each entry as it is: numbers beside texts stay numbers."""
    entries = np.array(rows, dtype=object)
    if entries.ndim == 1 and any(isinstance(row, list | tuple) for row in entries):
        lengths = sorted({len(row) for row in entries if isinstance(row, list | tuple)})
        raise ValueError(f"X must be rows of one length, got lists of lengths {lengths[:5]}")
    return entries

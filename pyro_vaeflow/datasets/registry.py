"""Tables with known anomalies: ODDS and ADBench files and breast cancer; where data files are.

Files are looked for in the folder ``data_home`` or, without it, in ``$VAEFLOW_DATA``. They are read
by loaders that run no code from a file, and nothing is cached.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat
from sklearn.datasets import load_breast_cancer

from pyro_vaeflow.datasets.splits import Dataset
from pyro_vaeflow.plain_files import read_arrays

ADBENCH = "ADBench (https://github.com/Minqi824/ADBench, adbench/datasets/Classical)"
ODDS = "the ODDS library (https://odds.cs.stonybrook.edu/arrhythmia-dataset/)"
MAX_BYTES = 2**31  # of a data file's arrays: the largest of ADBench have half of it
VARIABLE = "VAEFLOW_DATA"
Folder = str | os.PathLike[str] | None


def load_breast_cancer_table() -> Dataset:
    """Returns scikit-learn's breast-cancer table: ``X`` (569, 30), ``y`` 1 for 212 malignant rows.

    Example:
        >>> data = load_breast_cancer_table()
        >>> data.X.shape, int(data.y.sum())
        ((569, 30), 212)
    """
    bunch = load_breast_cancer(as_frame=True)
    labels = bunch.target_names.astype(object)[bunch.target.to_numpy()]
    return Dataset("breast_cancer", bunch.data, (labels == "malignant").astype(np.int64), labels)


def load_arrhythmia(data_home: Folder = None) -> Dataset:
    """Returns ODDS' arrhythmia from ``arrhythmia.mat``: ``X`` (452, 274), ``y`` 1 for 66 anomalies.

    Raises:
        FileNotFoundError: when ``arrhythmia.mat`` is not in the folder.
        ValueError: when it cannot be read or holds no ``X`` and ``y``.
    """
    path = require("arrhythmia.mat", data_home, ODDS)
    try:
        content = loadmat(path, variable_names=["X", "y"])
        return _dataset("arrhythmia", content["X"], content["y"])
    except Exception as error:  # NumPy and SciPy raise of all kinds on a hostile file
        raise bad_file(path, f"holds no table ({error!r:.300})", ODDS) from error


def adbench_names(data_home: Folder = None) -> dict[str, Path]:
    """Returns name -> path of the ADBench files at hand: ``adbench/38_thyroid.npz`` is ``thyroid``.

    Raises:
        FileNotFoundError: when there is no folder ``adbench``.
    """
    folder = require("adbench", data_home, ADBENCH, Path.is_dir)
    return dict(sorted((_adbench_name(path), path) for path in folder.glob("*.npz")))


def load_adbench(name: str, data_home: Folder = None) -> Dataset:
    """Returns a classical set of ADBench: ``X`` ``(num_data, num_columns)``, ``y`` 1 for anomalies.

    Args:
        name: as in `adbench_names`, in any case, with or without the file's number.
        data_home: folder that holds ``adbench/*.npz``; default ``$VAEFLOW_DATA``.

    Raises:
        FileNotFoundError: when there is no such file; the message lists those at hand.
        ValueError: when the file cannot be read, or holds no ``X`` and ``y``.
    """
    paths = adbench_names(data_home)
    by_name = paths | {path.stem.lower(): path for path in paths.values()}
    path = by_name.get(name.lower())
    if path is None:
        raise FileNotFoundError(
            f"no ADBench set is called {name!r}; at hand: {', '.join(paths) or 'none'}. "
            + advice("adbench/*.npz", ADBENCH)
        )
    try:
        content = read_arrays(path, MAX_BYTES)
        return _dataset(_adbench_name(path), content["X"], content["y"])
    except Exception as error:  # as above
        raise bad_file(path, f"holds no table ({error!r:.300})", ADBENCH) from error


def read_table(path: Path, label: str) -> Dataset:
    """Returns the table in a csv, Parquet or npz file, ``y`` its column `label`.

    An npz file has a matrix ``X``, and ``y`` under the name of `label`.

    Raises:
        ValueError: the file cannot be read, has no such column, or this is not all 0 and 1.
    """
    try:
        if path.suffix == ".npz":
            content = read_arrays(path, MAX_BYTES)
            return _dataset(path.stem, content["X"], content[label])
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except Exception as error:  # as above
        raise ValueError(f"{path} holds no labelled table: {error!r:.300}") from error
    if label not in frame:
        raise ValueError(f"{path} has no column {label!r}; it has {', '.join(map(str, frame))}")
    flags = frame.pop(label)
    if not flags.isin([0, 1]).all():
        raise ValueError(
            f"column {label!r} of {path} must be 1 for anomalies and 0 for other rows, got "
            f"{flags.drop_duplicates().tolist()[:5]}: write one, as by (frame.kind != 'normal')"
        )
    return _labelled(path.stem, frame, flags.to_numpy())


def _adbench_name(path: Path) -> str:
    return path.stem.split("_", 1)[-1].lower()


def _dataset(name: str, X: np.ndarray, y: np.ndarray) -> Dataset:
    if X.ndim != 2 or not len(X) or X.dtype.kind not in "biuf":
        raise ValueError(f"X must be a matrix of numbers, got shape {X.shape}, dtype {X.dtype}")
    if not np.isin(y, [0, 1]).all():
        raise ValueError("y must be 0 (inlier) or 1 (anomaly)")
    return _labelled(name, pd.DataFrame(X, columns=[f"x{j}" for j in range(X.shape[1])]), y)


def _labelled(name: str, X: pd.DataFrame, y: np.ndarray) -> Dataset:
    flags = y.reshape(-1).astype(np.int64)
    return Dataset(name, X, flags, np.where(flags == 1, "anomaly", "normal").astype(object))


def data_folder(data_home: Folder) -> Path | None:
    """Returns the folder to look in: ``data_home``, else ``$VAEFLOW_DATA``, else None."""
    chosen = data_home if data_home is not None else os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def require(
    name: str, data_home: Folder, source: str, is_there: Callable[[Path], bool] = Path.is_file
) -> Path:
    """Returns the path of an existing data file, or folder of such where `is_there` is ``is_dir``.

    Raises:
        FileNotFoundError: when no folder is named, or ``name`` is not in it.
    """
    folder = data_folder(data_home)
    if folder is None:
        why = f"{name} was not looked for: neither data_home nor {VARIABLE} names a folder"
    elif is_there(folder / name):
        return folder / name
    else:
        why = f"{folder / name} does not exist"
    raise FileNotFoundError(f"{why}. {advice(name, source)}")


def bad_file(path: Path, why: str, source: str) -> ValueError:
    """Returns the error for a file that exists and does not hold what its name says."""
    return ValueError(f"{path} {why}. Remove it. {advice(path.name, source)}")


def advice(filename: str, source: str) -> str:
    """Returns the sentence that says where to get a file and where to put it."""
    return (
        f"Get {filename} from {source} and put it in a folder named by data_home=... "
        f"or by the environment variable {VARIABLE}."
    )

"""Labelled tables, and splits of them into inliers to train on and rows to test on."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from pyro_vaeflow.validation import check_number


@dataclass(frozen=True)
class Dataset:
    """A labelled table of ``num_data`` rows; labels are for evaluation, never for training.

    Args:
        name: what tables of results call it.
        X: the columns, ``(num_data, num_columns)``.
        y: 1 where the row is an anomaly and 0 where it is not, ``(num_data,)``.
        labels: the names of the classes as published (attack types, diagnoses), ``(num_data,)``.

    Raises:
        ValueError: when lengths differ or ``y`` holds anything but 0 and 1.
    """

    name: str
    X: pd.DataFrame
    y: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        lengths = {"X": len(self.X), "y": len(self.y), "labels": len(self.labels)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"data set {self.name!r}: lengths differ: {lengths}")
        strange = np.setdiff1d(self.y, [0, 1])
        if len(strange):
            raise ValueError(
                f"data set {self.name!r}: y must be 0 (inlier) or 1 (anomaly), got {strange[:5]}"
            )

    def __len__(self) -> int:
        return len(self.X)


@dataclass(frozen=True)
class Split:
    """Inlier rows to train on, and labelled rows to score; frames keep the index of their table.

    Args:
        X_train: inliers, ``(num_train, num_columns)``.
        X_test: rows of both kinds, ``(num_test, num_columns)``.
        y_test: 1 where the test row is an anomaly, ``(num_test,)``.
        labels_test: published class names of the test rows, ``(num_test,)``.
    """

    X_train: pd.DataFrame
    X_test: pd.DataFrame
    y_test: np.ndarray
    labels_test: np.ndarray


def holdout_split(data: Dataset, *, test_size: float = 0.2, seed: int = 42) -> Split:
    """Holds out a share of all rows for test and trains on the inliers of the others.

    The defaults are the paper's protocol on KDD Cup 99: its test rows are those of
    ``train_test_split(X, y, test_size=0.2, random_state=42)``.

    Raises:
        ValueError: when ``test_size`` is not inside (0, 1) or no inlier is left to train on.

    Example:
        >>> from pyro_vaeflow.datasets.registry import load_breast_cancer_table
        >>> split = holdout_split(load_breast_cancer_table())
        >>> len(split.X_train), len(split.X_test), int(split.y_test.sum())
        (286, 114, 43)
    """
    check_number("test_size", test_size, above=0.0, below=1.0)
    rows = np.arange(len(data))
    train, test = train_test_split(rows, test_size=test_size, random_state=seed)
    train = train[data.y[train] == 0]
    if not len(train):
        raise ValueError(f"data set {data.name!r}: the split leaves no inlier (y = 0) to train on")
    return _split(data, train, test)


def one_class_split(data: Dataset, *, seed: int = 0, train_fraction: float = 0.5) -> Split:
    """Trains on a random share of the inliers; tests on the others and on every anomaly.

    Test rows come in the table's order.

    Raises:
        ValueError: when ``train_fraction`` is not inside (0, 1) or leaves no inlier on one side.

    Example:
        >>> from pyro_vaeflow.datasets.registry import load_breast_cancer_table
        >>> split = one_class_split(load_breast_cancer_table(), seed=0)
        >>> len(split.X_train), len(split.X_test), int(split.y_test.sum())
        (178, 391, 212)
    """
    check_number("train_fraction", train_fraction, above=0.0, below=1.0)
    inliers = np.flatnonzero(data.y == 0)
    num_train = int(train_fraction * len(inliers))
    if not 0 < num_train < len(inliers):
        raise ValueError(
            f"data set {data.name!r}: train_fraction={train_fraction} of {len(inliers)} inliers "
            "leaves none to train on or none to test on"
        )
    train = np.random.default_rng(seed).permutation(inliers)[:num_train]
    test = np.setdiff1d(np.arange(len(data)), train)
    return _split(data, train, test)


def first_of_each(split: Split) -> np.ndarray:
    """True at the first test row of each kind, ``(num_test,)``: equal in all columns and in y.

    Detectors are also compared on these rows, where no row counts twice.

    Example:
        >>> from pyro_vaeflow.datasets.registry import load_breast_cancer_table
        >>> int(first_of_each(holdout_split(load_breast_cancer_table())).sum())
        114
    """
    repeats = split.X_test.reset_index(drop=True).assign(is_anomaly=split.y_test).duplicated()
    return ~repeats.to_numpy()


def _split(data: Dataset, train: np.ndarray, test: np.ndarray) -> Split:
    return Split(data.X.iloc[train], data.X.iloc[test], data.y[test], data.labels[test])

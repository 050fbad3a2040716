"""Detectors that stand beside ours in tables: exact lookups, and wrappers of scikit-learn and PyOD.

All take numeric rows ``(num_data, num_features)`` and score high = odd. Equal rows are searched
for and scored once: most rows of KDD Cup 99 repeat others.
"""

from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from pyro_vaeflow.inference.parameters import seeded


class Detector(Protocol):
    """What a peer is: fitted to inlier rows, it gives a score a row.

    Attributes:
        num_train_: how many rows it learned from.
    """

    num_train_: int

    def fit(self, x: np.ndarray) -> Self:
        """Learns from inliers ``(num_train, num_features)``."""

    def anomaly_score(self, x: np.ndarray) -> np.ndarray:
        """High = odd, shape ``(num_data,)``."""


def distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in order of first appearance, and which of them each row is.

    Example:
        >>> rows, place = distinct(np.array([[2.0], [1.0], [2.0]]))
        >>> rows.tolist(), place.tolist()
        ([[2.0], [1.0]], [0, 1, 0])
    """
    keys = _keys(x)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return x[first[order]], place[inverse]


def drawn(x: np.ndarray, max_train_rows: int | None, seed: int) -> np.ndarray:
    """At most so many of the rows, at random and without replacement; all of them for None."""
    if max_train_rows is None or len(x) <= max_train_rows:
        return x
    return x[np.random.default_rng(seed).permutation(len(x))[:max_train_rows]]


class Lookup:
    """Exact rows: 0 for a row that training has shown, 1 for any other."""

    def fit(self, x: np.ndarray) -> Self:
        """Remembers each row."""
        self.num_train_ = len(x)
        self.known_ = set(map(bytes, _keys(x)))
        return self

    def anomaly_score(self, x: np.ndarray) -> np.ndarray:
        """0 or 1, shape ``(num_data,)``."""
        return np.array([bytes(key) not in self.known_ for key in _keys(x)], dtype=float)


class NovelValues:
    """The number of columns whose value no training row has."""

    def fit(self, x: np.ndarray) -> Self:
        """Remembers the values of each column."""
        self.num_train_ = len(x)
        self.values_ = [np.unique(np.nan_to_num(column, nan=np.inf)) for column in x.T]
        return self

    def anomaly_score(self, x: np.ndarray) -> np.ndarray:
        """From 0 to the number of columns, shape ``(num_data,)``."""
        pairs = zip(x.T, self.values_, strict=True)
        novel = [~np.isin(np.nan_to_num(c, nan=np.inf), known) for c, known in pairs]
        return np.sum(novel, axis=0).astype(float)


class Neighbour:
    """Euclidean distance to the k-th nearest of the distinct training rows.

    Of fewer than k distinct rows, the distance to the farthest.
    """

    def __init__(self, num_neighbours: int) -> None:
        self.num_neighbours = num_neighbours

    def fit(self, x: np.ndarray) -> Self:
        """Keeps the distinct rows."""
        rows = distinct(x)[0]
        self.num_train_ = len(rows)
        self.search_ = NearestNeighbors(n_neighbors=min(self.num_neighbours, len(rows))).fit(rows)
        return self

    def anomaly_score(self, x: np.ndarray) -> np.ndarray:
        """Distances, shape ``(num_data,)``."""
        rows, place = distinct(x)
        return self.search_.kneighbors(rows)[0][:, -1][place]


class Reconstruction:
    """Euclidean distance of a row to its projection on principal components.

    Args:
        explained: the share of the training rows' variance that the components keep.
    """

    def __init__(self, explained: float) -> None:
        self.explained = explained

    def fit(self, x: np.ndarray) -> Self:
        """Finds the components."""
        self.num_train_ = len(x)
        self.pca_ = PCA(self.explained, svd_solver="full").fit(x)
        return self

    def anomaly_score(self, x: np.ndarray) -> np.ndarray:
        """Distances, shape ``(num_data,)``."""
        return np.linalg.norm(x - self.pca_.inverse_transform(self.pca_.transform(x)), axis=1)


class Estimator:
    """A scikit-learn detector, whose ``score_samples`` are low = odd.

    Args:
        estimator: with ``fit`` and ``score_samples``.
        max_train_rows: of more rows, so many are drawn, with `seed`.
    """

    def __init__(self, estimator: Any, *, max_train_rows: int | None = None, seed: int = 0) -> None:
        self.estimator = estimator
        self.max_train_rows = max_train_rows
        self.seed = seed

    def fit(self, x: np.ndarray) -> Self:
        """Fits the estimator."""
        rows = drawn(x, self.max_train_rows, self.seed)
        self.num_train_ = len(rows)
        self.estimator.fit(rows)
        return self

    def anomaly_score(self, x: np.ndarray) -> np.ndarray:
        """The estimator's scores with the sign changed, shape ``(num_data,)``."""
        rows, place = distinct(x)
        return -self.estimator.score_samples(rows)[place]


class PyOD:
    """A detector of PyOD, whose ``decision_function`` is high = odd.

    PyOD seeds the global random states; they come back as they were.

    Args:
        make: the detector, made when it is fitted.
        max_train_rows: of more rows, so many are drawn, with `seed`.
    """

    def __init__(
        self, make: Callable[[], Any], *, max_train_rows: int | None = None, seed: int = 0
    ) -> None:
        self.make = make
        self.max_train_rows = max_train_rows
        self.seed = seed

    def fit(self, x: np.ndarray) -> Self:
        """Makes the detector and fits it."""
        rows = drawn(x, self.max_train_rows, self.seed)
        self.num_train_ = len(rows)
        with seeded(self.seed):
            self.detector_ = self.make().fit(rows)
        return self

    def anomaly_score(self, x: np.ndarray) -> np.ndarray:
        """The detector's scores, shape ``(num_data,)``."""
        with seeded(self.seed):
            return self.detector_.decision_function(x)


def _keys(x: np.ndarray) -> np.ndarray:
    """One opaque item a row, equal where the rows are."""
    rows = np.ascontiguousarray(x + 0.0)  # -0.0 is 0.0
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()

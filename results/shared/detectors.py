"""Detectors that ours are compared with: scikit-learn's, PyOD's, exact look-ups, neighbours."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from pyod.models.ecod import ECOD
from pyod.models.vae import VAE
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.svm import OneClassSVM

from pyro_vaeflow.inference.parameters import seeded

EXACT_ROWS = "1 where no training row is the same in every column, else 0: what memory alone finds."
UNSEEN_VALUES = "How many of the row's columns hold a value that no training row has there."
KNN = "Distance to the {}nearest distinct training row."
LOF = (
    "scikit-learn's local outlier factor, 20 neighbours, on at most 20,000 training rows; copies "
    "of a row count."
)
FOREST = "scikit-learn's isolation forest, 200 trees."
RECONSTRUCTION = "Distance to the span of the principal components of 90% of the variance."
OCSVM = "scikit-learn's one-class SVM at its defaults, on at most 10,000 training rows."
OF_ECOD = (
    "PyOD's ECOD at its defaults; it counts the test rows in with the training rows, so a row's "
    "score depends on the rows beside it."
)
OF_VAE = (
    "PyOD's VAE: trained by mean squared error, the Kullback-Leibler term of its loss clamped to 0 "
    "at its default capacity, scored by one draw's reconstruction distance."
)

NAMES = {  # in figures and pages
    "exact_rows": "exact rows",
    "unseen_values": "unseen values",
    "knn1": "1-NN",
    "knn5": "5-NN",
    "lof": "LOF",
    "isolation_forest": "isolation forest",
    "pca": "PCA",
    "ocsvm": "one-class SVM",
    "ecod": "ECOD",
    "pyod_vae": "PyOD's VAE",
}


@dataclass(frozen=True)
class Baseline:
    """A detector beside ours, and the rows that it reads.

    Args:
        preprocessing: how columns become numbers, as in `ExperimentConfig`.
        about: what tables say of it.
        make: the detector of a seed: ``fit(x)``, and ``score_samples(x)``, low = anomalous as in
            scikit-learn, or ``decision_function(x)``, high = anomalous as in PyOD.
        max_train_rows: of more training rows, so many are drawn with the seed.
        by_row: whether a row's score depends on that row alone; then equal rows are scored once.
    """

    preprocessing: str
    about: str
    make: Callable[[int], Any]
    max_train_rows: int | None = None
    by_row: bool = True


class ExactRows:
    """Look-up of rows: 0 for a row that training has shown, 1 for any other."""

    def fit(self, x: np.ndarray) -> Self:
        """Remembers each row of `x`, ``(num_data, num_features)``."""
        self.known_ = set(_rows(x))
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """0 or 1, shape ``(num_data,)``."""
        return np.array([row not in self.known_ for row in _rows(x)], dtype=float)


class UnseenValues:
    """The number of a row's columns whose value no training row has."""

    def fit(self, x: np.ndarray) -> Self:
        """Remembers the values of each column."""
        self.values_ = [np.unique(column) for column in np.nan_to_num(x, nan=np.inf).T]
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """From 0 to the number of columns, shape ``(num_data,)``."""
        pairs = zip(np.nan_to_num(x, nan=np.inf).T, self.values_, strict=True)
        return np.sum([~np.isin(column, known) for column, known in pairs], axis=0).astype(float)


class Neighbour:
    """Euclidean distance to the k-th nearest of the distinct training rows, or to the farthest."""

    def __init__(self, k: int) -> None:
        self.k = k

    def fit(self, x: np.ndarray) -> Self:
        """Keeps the distinct rows."""
        rows = distinct(x)[0]
        self.search_ = NearestNeighbors(n_neighbors=min(self.k, len(rows))).fit(rows)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """Distances, shape ``(num_data,)``."""
        return self.search_.kneighbors(x)[0][:, -1]


class Reconstruction:
    """Euclidean distance of a row to its projection on principal components.

    Args:
        explained: the share of the training rows' variance that the components keep.
    """

    def __init__(self, explained: float) -> None:
        self.explained = explained

    def fit(self, x: np.ndarray) -> Self:
        """Finds the components."""
        self.pca_ = PCA(self.explained, svd_solver="full").fit(x)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """Distances, shape ``(num_data,)``."""
        return np.linalg.norm(x - self.pca_.inverse_transform(self.pca_.transform(x)), axis=1)


def usual(preprocessing: str, vae_options: Mapping[str, Any] | None = None) -> dict[str, Baseline]:
    """The baselines that studies choose from, by name.

    Args:
        preprocessing: of all but the look-ups, which read codes of values.
        vae_options: of PyOD's VAE; the others stay at PyOD's defaults.
    """

    def lof(seed: int) -> LocalOutlierFactor:
        return LocalOutlierFactor(n_neighbors=20, novelty=True)

    def forest(seed: int) -> IsolationForest:
        return IsolationForest(n_estimators=200, random_state=seed)

    def vae(seed: int) -> VAE:
        return VAE(random_state=seed, verbose=0, **(vae_options or {}))

    of = partial(Baseline, preprocessing)
    return {
        "exact_rows": Baseline("codes", EXACT_ROWS, lambda seed: ExactRows()),
        "unseen_values": Baseline("codes", UNSEEN_VALUES, lambda seed: UnseenValues()),
        "knn1": of(KNN.format(""), lambda seed: Neighbour(1)),
        "knn5": of(KNN.format("5th "), lambda seed: Neighbour(5)),
        "lof": of(LOF, lof, max_train_rows=20_000),
        "isolation_forest": of(FOREST, forest),
        "pca": of(RECONSTRUCTION, lambda seed: Reconstruction(0.9)),
        "ocsvm": of(OCSVM, lambda seed: OneClassSVM(), max_train_rows=10_000),
        "ecod": of(OF_ECOD, lambda seed: ECOD(), by_row=False),
        "pyod_vae": of(OF_VAE, vae, by_row=False),
    }


def _rows(x: np.ndarray) -> Iterable[tuple[float, ...]]:
    return map(tuple, np.nan_to_num(x, nan=np.inf).tolist())  # NaN would be no value's equal


def distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in lexicographic order, and which of them each row is.

    Example:
        >>> rows, index = distinct(np.array([[2.0], [1.0], [2.0]]))
        >>> rows.tolist(), index.tolist()
        ([[1.0], [2.0]], [1, 0, 1])
    """
    rows, index = torch.unique(torch.as_tensor(x), dim=0, return_inverse=True)
    return rows.numpy(), index.numpy()


def fit(baseline: Baseline, x: np.ndarray, seed: int) -> Any:
    """The detector of a seed, fitted to the training rows or to those drawn from them."""
    if baseline.max_train_rows is not None and len(x) > baseline.max_train_rows:
        x = x[np.random.default_rng(seed).permutation(len(x))[: baseline.max_train_rows]]
    with seeded(seed):  # PyOD seeds the global random states; they come back as they were
        return baseline.make(seed).fit(x)


def anomaly_score(baseline: Baseline, detector: Any, x: np.ndarray, seed: int) -> np.ndarray:
    """The detector's anomaly scores, high = anomalous, shape ``(num_data,)``."""
    rows, index = distinct(x) if baseline.by_row else (x, np.arange(len(x)))
    with seeded(seed):
        if hasattr(detector, "score_samples"):
            return -detector.score_samples(rows)[index]
        return detector.decision_function(rows)[index]

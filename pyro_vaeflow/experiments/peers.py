"""Peers and controls by name, for the tables that ours must stand in.

To add one, register a function from a seed, and options by name, to a `Detector` in `PEERS`. The
first line of its docstring is what tables say of it.
"""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from pyro_vaeflow.experiments.peer_detectors import (
    Detector,
    Estimator,
    Lookup,
    Neighbour,
    NovelValues,
    PyOD,
    Reconstruction,
)


def lookup(seed: int) -> Detector:
    """1 where no training row is the same in every column, else 0: what memory alone finds."""
    return Lookup()


def novel_values(seed: int) -> Detector:
    """How many of the row's columns hold a value that no training row has in that column."""
    return NovelValues()


def knn1(seed: int) -> Detector:
    """Distance to the nearest distinct training row."""
    return Neighbour(1)


def knn5(seed: int) -> Detector:
    """Distance to the 5th nearest distinct training row."""
    return Neighbour(5)


def lof(seed: int, max_train_rows: int = 20_000) -> Detector:
    """scikit-learn's local outlier factor, 20 neighbours, on at most 20,000 training rows.

    Copies of a row count: where one has more than 20, the density around it is infinite.

    Args:
        max_train_rows: of more rows, so many are drawn with the seed.
    """
    factor = LocalOutlierFactor(n_neighbors=20, novelty=True)
    return Estimator(factor, max_train_rows=max_train_rows, seed=seed)


def isolation_forest(seed: int) -> Detector:
    """scikit-learn's isolation forest, 200 trees."""
    return Estimator(IsolationForest(n_estimators=200, random_state=seed))


def pca(seed: int) -> Detector:
    """Distance to the span of the principal components that explain 90% of the variance."""
    return Reconstruction(0.9)


def ocsvm(seed: int, max_train_rows: int = 10_000) -> Detector:
    """scikit-learn's one-class SVM at its defaults, on at most 10,000 training rows.

    Its time is quadratic in the training rows; of more, so many are drawn with the seed.
    """
    return Estimator(OneClassSVM(), max_train_rows=max_train_rows, seed=seed)


def ecod(seed: int) -> Detector:
    """PyOD's ECOD at its defaults; it counts the test rows in with the training rows.

    So a row's score depends on the rows scored beside it.
    """
    return PyOD(_pyod("pyod.models.ecod", "ECOD"), seed=seed)


def pyod_vae(
    seed: int,
    preprocessing: bool = True,
    epoch_num: int = 30,
    batch_size: int = 32,
    latent_dim: int = 2,
    encoder_neuron_list: Sequence[int] = (128, 64, 32),
    decoder_neuron_list: Sequence[int] = (32, 64, 128),
    max_train_rows: int | None = None,
) -> Detector:
    """PyOD's VAE: trained by mean squared error, scored by one draw's reconstruction distance.

    Options are named, and default, as PyOD's own; the others stay at its defaults. Among these is
    ``capacity=0``, at which the Kullback-Leibler term of the loss is clamped to 0 and has no
    gradient. A trailing part of a batch is left out of each epoch.

    Args:
        preprocessing: whether PyOD standardises the columns once more.
        max_train_rows: of more training rows, so many are drawn with the seed.
    """
    make = _pyod(
        "pyod.models.vae",
        "VAE",
        preprocessing=preprocessing,
        epoch_num=epoch_num,
        batch_size=batch_size,
        latent_dim=latent_dim,
        encoder_neuron_list=list(encoder_neuron_list),
        decoder_neuron_list=list(decoder_neuron_list),
        random_state=seed,
        verbose=0,
    )
    return PyOD(make, max_train_rows=max_train_rows, seed=seed)


PEERS: dict[str, Callable[..., Detector]] = {
    function.__name__: function
    for function in (
        lookup,
        novel_values,
        knn1,
        knn5,
        lof,
        isolation_forest,
        pca,
        ocsvm,
        ecod,
        pyod_vae,
    )
}


def _pyod(module: str, name: str, **options: Any) -> Callable[[], Any]:
    """Makes a detector of PyOD, which is imported when it is fitted and not before.

    Raises (when called):
        ImportError: PyOD is not installed; the message names the extra that installs it.
    """

    def make() -> Any:
        try:
            with warnings.catch_warnings():  # other packages' news are not ours to deal with
                warnings.simplefilter("ignore")
                kind = getattr(import_module(module), name)
        except ImportError as error:
            raise ImportError(
                f"{name} needs PyOD ({error}); install the extra: "
                'pip install -c constraints.txt -e ".[peers]"'
            ) from error
        return kind(**options)

    return make

"""What a run trains on and is tested on: inlier rows, labelled test rows, as tensors.

To add a data set, register a function from its seed, `split_seed`, to a `Split` in `TASKS`; in the
file of one's own `programs`, it is there in worker processes too. A file needs no function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder

from pyro_vaeflow.datasets.kddcup99 import load_kddcup99
from pyro_vaeflow.datasets.registry import (
    adbench_names,
    load_adbench,
    load_arrhythmia,
    load_breast_cancer_table,
    read_table,
)
from pyro_vaeflow.datasets.ring import make_ring
from pyro_vaeflow.datasets.splits import Split, first_of_each, holdout_split, one_class_split
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.own_files import is_file, locate
from pyro_vaeflow.programs.vae import Row
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.tables.mixed_encoder import MixedEncoder
from pyro_vaeflow.tables.table_encoder import SCALERS, TableEncoder
from pyro_vaeflow.validation import ConfigError, check_names

RING_REACH = 1.2  # of the square that the ring's anomalies fill


@dataclass(frozen=True)
class Task:
    """Encoded rows, float32 ``(num_data, num_features)``; training rows are all inliers.

    Args:
        is_anomaly: 1 where the test row is one, ``(num_test,)``.
        labels: published class names of the test rows, ``(num_test,)``.
        is_first: True at the first of test rows that are alike, ``(num_test,)``.
        columns: what the columns hold, of a mixed table.
    """

    x_train: torch.Tensor
    x_test: torch.Tensor
    is_anomaly: np.ndarray
    labels: np.ndarray
    is_first: np.ndarray
    columns: Sequence[Column] | None = None

    @property
    def num_features(self) -> Row:
        """What `Model` and `Guide` are told of the rows."""
        return self.x_train.shape[1] if self.columns is None else self.columns


def ring_split(split_seed: int) -> Split:
    """5,000 rows of the ring to train on; 1,000 fresh ones and 1,000 uniform in a square to test.

    Coordinates stay as they are, so that log densities compare with `ring_log_density`. Uniform
    points can lie on the ring, so no score tells all of them apart.
    """
    train, inliers = make_ring(seed=split_seed), make_ring(2_000, seed=split_seed + 1)
    anomalies = np.random.default_rng(split_seed).uniform(-RING_REACH, RING_REACH, inliers.shape)
    test = np.concatenate([inliers.numpy(), anomalies.astype(np.float32)])
    y = np.repeat([0, 1], len(inliers))
    labels = np.where(y == 1, "uniform", "ring").astype(object)
    x_train, x_test = (pd.DataFrame(x, columns=["x1", "x2"]) for x in (train.numpy(), test))
    return Split(x_train, x_test, y, labels)


TASKS: dict[str, Callable[[int], Split]] = {
    "kddcup99": lambda seed: holdout_split(load_kddcup99(), seed=seed),
    "ring": ring_split,
    "breast_cancer": lambda seed: holdout_split(load_breast_cancer_table(), seed=seed),
    "arrhythmia": lambda seed: one_class_split(load_arrhythmia(), seed=seed),
}

ENCODERS: dict[str, Callable[[], Any]] = {
    "none": FunctionTransformer,
    "mixed": MixedEncoder,
    **{name: partial(TableEncoder, name) for name in SCALERS},
    # Numbers of the values that training rows show, -1 for others.
    "codes": partial(OrdinalEncoder, handle_unknown="use_encoded_value", unknown_value=-1),
}


def check_task(config: ExperimentConfig) -> None:
    """Refuses a data set or preprocessing that is not known, naming those that are."""
    known = [*TASKS, "adbench:NAME", "FILE.csv", "FILE.parquet", "FILE.npz"]
    if config.dataset.startswith("adbench:"):
        try:
            known = [f"adbench:{name}" for name in adbench_names()]
        except FileNotFoundError as error:
            raise ConfigError(f"dataset {config.dataset}: {error}") from error
    of_file = is_file(config.dataset, "dataset")
    check_names([] if of_file else [config.dataset], known, "dataset")
    if of_file and config.label is None:
        raise ConfigError(
            f"label: name the column of {config.dataset.rpartition('@')[0]} that is 1 where the "
            "row is an anomaly and 0 elsewhere"
        )
    if config.label is not None and not of_file:
        raise ConfigError(f"label: is for a file; dataset={config.dataset!r} has its labels")
    check_names([config.preprocessing], ENCODERS, "preprocessing")


def load_task(config: ExperimentConfig) -> Task:
    """The encoded rows of a configuration; runs that share them in one process load them once.

    Raises:
        ConfigError: as `check_task`.
        FileNotFoundError: the data set's file is missing; the message says where to get it.
    """
    check_task(config)
    dataset, label = config.dataset, config.label
    return _load(dataset, label, config.rows_seed, config.max_rows, config.preprocessing)


@lru_cache(maxsize=2)
def _load(
    dataset: str, label: str | None, split_seed: int, max_rows: int | None, preprocessing: str
) -> Task:
    # Only these settings decide the rows; the others must not make a second copy.
    split = _rows(dataset, label, split_seed, max_rows)
    encoder = ENCODERS[preprocessing]()  # learns from training inliers only
    x_train, x_test = (
        torch.tensor(np.asarray(rows, dtype=np.float32))
        for rows in (encoder.fit_transform(split.X_train), encoder.transform(split.X_test))
    )
    columns = encoder.columns_ if preprocessing == "mixed" else None
    return Task(x_train, x_test, split.y_test, split.labels_test, first_of_each(split), columns)


@lru_cache(maxsize=1)
def _rows(dataset: str, label: str | None, split_seed: int, max_rows: int | None) -> Split:
    # Apart from the encoding, so that methods that read the rows in other ways read them once.
    name = dataset.removeprefix("adbench:")
    if label is not None:  # of a file, which has the content that it had when the study was read
        path = Path(locate(dataset, Path.cwd(), "dataset").rpartition("@")[0])
        split = one_class_split(read_table(path, label), seed=split_seed)
    elif name == dataset:
        split = TASKS[dataset](split_seed)
    else:
        split = one_class_split(load_adbench(name), seed=split_seed)
    if max_rows is None:
        return split
    draw = np.random.default_rng(split_seed)
    train = split.X_train.iloc[draw.permutation(len(split.X_train))[:max_rows]]
    kept = draw.permutation(len(split.X_test))[:max_rows]
    return Split(train, split.X_test.iloc[kept], split.y_test[kept], split.labels_test[kept])

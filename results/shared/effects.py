"""Effects: paired differences between runs, their means over data sets, and 95% intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyro_vaeflow.experiments.results import DETECTION, DISTINCT

POSTERIOR = ("flow", "num_flows")
# Beside data set and seed, what makes the cell in which posteriors are compared.
CELL = ("latent_dim", "preprocessing", "likelihood", "annealing.kind")
DIAGONAL = {"flow": "diagonal"}
MEASURES = (
    "elbo log_evidence kl approximation_gap amortization_gap active_units gap_khat_above_0.7 "
    "auroc_reconstruction auroc_importance average_precision_reconstruction "
    "average_precision_importance f1_top20_reconstruction f1_top20_importance "
    "f1_true_ratio_reconstruction f1_true_ratio_importance"
).split()
NUM_RESAMPLES = 4000
FEWEST = 5  # pairs of data set and seed behind an interval: three of one sign are chance


@dataclass(frozen=True)
class Effect:
    """A mean of paired differences and its 95% interval, NaN where there are too few.

    Example:
        >>> Effect(0.012, -0.001, 0.02).text(factor=100, digits=1)
        '+1.2 (-0.1 to 2.0)'
    """

    mean: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether there were enough pairs for one."""
        return bool(np.isfinite(self.low))

    def text(self, factor: float = 1.0, digits: int = 2) -> str:
        """The mean, multiplied by `factor`, with its interval if it has one."""
        mean, low, high = (factor * value for value in (self.mean, self.low, self.high))
        interval = f" ({low:.{digits}f} to {high:.{digits}f})" if self.has_interval else ""
        return f"{mean:+.{digits}f}{interval}"


def by_run(table: pd.DataFrame) -> pd.DataFrame:
    """A summary with one row per run: columns of detection are there once per score, as auroc_a.

    Example:
        >>> table = pd.DataFrame({"seed": 0, "score": ["a", "b"], "auroc": [0.8, 0.9]})
        >>> by_run(table).to_dict("records")
        [{'seed': 0, 'auroc_a': 0.8, 'auroc_b': 0.9}]
    """
    of_scores = [name for name in [*DETECTION, *DISTINCT] if name in table]
    keys = [str(name) for name in table if name not in [*of_scores, "score"]]
    run = table.groupby(keys, sort=False, dropna=False).ngroup()
    wide = table.assign(run=run).pivot(index="run", columns="score", values=of_scores)
    wide.columns = ["_".join(pair) for pair in wide.columns]
    return table.loc[~run.duplicated(), keys].reset_index(drop=True).join(wide)


def paired(
    table: pd.DataFrame,
    reference: Mapping[str, Any] = DIAGONAL,
    differ_in: Sequence[str] = POSTERIOR,
) -> pd.DataFrame:
    """Each run's measures less those of the reference run of its cell and seed, a row a run.

    Args:
        table: one row a run, the columns of summary.csv.
        reference: settings of the run that the others are compared with, one in each cell.
        differ_in: the settings in which the two may differ; in all others they are alike.

    Example:
        >>> table = pd.DataFrame({"dataset": "a", "seed": 0, "flow": ["diagonal", "iaf"],
        ...                       "num_flows": [0, 5], "latent_dim": 2, "elbo": [-3.0, -2.5]})
        >>> paired(table)[["flow", "num_flows", "elbo"]].to_dict("records")
        [{'flow': 'iaf', 'num_flows': 5, 'elbo': 0.5}]
    """
    names = [name for name in ("dataset", "seed", *POSTERIOR, *CELL) if name in table]
    cell = [name for name in names if name not in differ_in]
    measures = [name for name in MEASURES if name in table]
    is_reference = (table[[*reference]] == pd.Series(reference)).all(axis=1)
    pairs = table[~is_reference][[*names, *measures]].merge(
        table[is_reference][[*cell, *measures]],
        on=cell,
        suffixes=("", "_reference"),
        validate="many_to_one",
    )
    for name in measures:
        pairs[name] -= pairs[f"{name}_reference"]
    return pairs[[*names, *measures]]


def effect(differences: pd.DataFrame, measure: str, seed: int = 0) -> Effect:
    """The mean over data sets of the means over seeds of the means over cells, with an interval.

    The bootstrap draws data sets with replacement, and for each of them its seeds. A seed has rows,
    start and batches of its own, and all its cells are drawn together. Below `FEWEST` pairs of data
    set and seed there is no interval.

    References:
        A. Davison, D. Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.

    Example:
        >>> rows = pd.DataFrame({"dataset": list("abcdef"), "seed": 0, "elbo": [1, 2, 3, 4, 5, 3]})
        >>> gain = effect(rows, "elbo")
        >>> gain.mean, 1.0 < gain.low < 3.0 < gain.high < 5.0
        (3.0, True)
    """
    per_seed = differences.dropna(subset=[measure]).groupby(["dataset", "seed"])[measure].mean()
    groups = [values.to_numpy() for _, values in per_seed.groupby(level="dataset")]
    if not groups:
        return Effect(np.nan, np.nan, np.nan)
    mean = float(np.mean([values.mean() for values in groups]))
    if len(per_seed) < FEWEST:
        return Effect(mean, np.nan, np.nan)
    draw = np.random.default_rng(seed)
    of_set = np.stack(
        [v[draw.integers(len(v), size=(NUM_RESAMPLES, len(v)))].mean(1) for v in groups]
    )
    sets = draw.integers(len(groups), size=of_set.shape)
    means = np.take_along_axis(of_set, sets, axis=0).mean(0)
    low, high = np.quantile(means, [0.025, 0.975])
    return Effect(mean, float(low), float(high))


def effects(differences: pd.DataFrame, by: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """A row a group of `by`: runs, and of each measure the effect with the ends of its interval."""
    rows = []
    for key, group in differences.groupby([*by], sort=False):
        row = dict(zip(by, key, strict=True)) | {"runs": len(group)}
        for name in measures:
            of_group = effect(group, name)
            row |= {name: of_group.mean, f"{name}_low": of_group.low, f"{name}_high": of_group.high}
        rows.append(row)
    return pd.DataFrame(rows)

"""What a flow changes: each run beside the diagonal one of its cell, means and intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

BASE = "diagonal"
POSTERIOR = ("flow", "num_flows")
# Beside data set and seed, what makes the cell in which posteriors are compared.
CELL = ("latent_dim", "preprocessing", "likelihood", "annealing.kind")
OF_BASE: Mapping[str, Any] = MappingProxyType({"flow": BASE})
MEASURES = (
    "elbo log_evidence kl approximation_gap amortization_gap active_units gap_khat_above_0.7 "
    "auroc_reconstruction auroc_importance average_precision_reconstruction "
    "average_precision_importance f1_top20_reconstruction f1_top20_importance "
    "f1_true_ratio_reconstruction f1_true_ratio_importance"
).split()
NUM_RESAMPLES = 4000
FEWEST = (
    5  # pairs of data set and seed that an interval is drawn from; three of one sign are chance
)


@dataclass(frozen=True)
class Effect:
    """A mean of paired differences and its 95% interval, NaN where there is too little to draw."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired(
    wide: pd.DataFrame, other: Mapping[str, Any] = OF_BASE, apart: Sequence[str] = POSTERIOR
) -> pd.DataFrame:
    """Differences from the run that is as `other` in the same cell and seed, a row a run.

    Args:
        wide: as of `pyro_vaeflow.experiments.tables.by_run`.
        other: settings of the run that the others are compared with, one in each cell.
        apart: the settings in which the two may differ; in all others they are alike.

    Example:
        >>> wide = pd.DataFrame({"dataset": "a", "seed": 0, "flow": ["diagonal", "iaf"],
        ...                      "num_flows": [0, 5], "latent_dim": 2, "elbo": [-3.0, -2.5]})
        >>> paired(wide)[["flow", "num_flows", "elbo"]].to_dict("records")
        [{'flow': 'iaf', 'num_flows': 5, 'elbo': 0.5}]
    """
    names = [name for name in ("dataset", "seed", *POSTERIOR, *CELL) if name in wide]
    cell = [name for name in names if name not in apart]
    measures = [name for name in MEASURES if name in wide]
    is_other = (wide[[*other]] == pd.Series(other)).all(axis=1)
    both = wide[~is_other][[*names, *measures]].merge(
        wide[is_other][[*cell, *measures]], on=cell, suffixes=("", "_other"), validate="many_to_one"
    )
    for name in measures:
        both[name] = both[name] - both[f"{name}_other"]
    return both[[*names, *measures]]


def effect(differences: pd.DataFrame, measure: str, seed: int = 0) -> Effect:
    """The mean over data sets of the means over seeds of the means over cells, with an interval.

    The bootstrap draws data sets with replacement, and for each of them its seeds. A seed has rows,
    start and batches of its own, and all its cells are drawn together. Below `FEWEST` pairs of data
    set and seed there is no interval.

    References:
        A. Davison, D. Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.

    Example:
        >>> rows = pd.DataFrame({"dataset": list("abcdef"), "seed": 0, "elbo": [1, 2, 3, 4, 5, 3]})
        >>> found = effect(rows, "elbo")
        >>> found.mean, 1.0 < found.low < 3.0 < found.high < 5.0
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
    of_set = np.stack([_means(values, draw) for values in groups])
    places = np.arange(NUM_RESAMPLES)
    chosen = draw.integers(len(groups), size=(len(groups), NUM_RESAMPLES))
    means = of_set[chosen, places].mean(0)
    low, high = np.quantile(means, [0.025, 0.975])
    return Effect(mean, float(low), float(high))


def effects(differences: pd.DataFrame, by: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """A row a group of `by`: runs, and of each measure the effect with the ends of its interval."""
    rows = []
    for key, group in differences.groupby([*by], sort=False):
        row = dict(zip(by, key, strict=True)) | {"runs": len(group)}
        for measure in measures:
            found = effect(group, measure)
            row |= {measure: found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _means(values: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return values[draw.integers(len(values), size=(NUM_RESAMPLES, len(values)))].mean(1)

"""Drift: whether new rows are like those that were kept from training, and which columns moved."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp

from pyro_vaeflow.plots.charts import plot_drift
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.tables.reading import Shares

ALPHA = 0.001  # of a batch that is like the old ones, the probability of being told otherwise
EXPECTED = 5  # entries of a level, or the test of frequencies is no good: such levels are pooled


@dataclass(frozen=True)
class Drift:
    """What of a batch of rows is unlike the rows kept from training.

    Args:
        columns: a row a column: the share ``missing`` and ``new`` (levels never seen, numbers out
            of training's range), ``shift``, the largest difference of the two distribution
            functions, or half the sum of differences of the levels' shares, ``nats``, what the
            column adds to a row's -log p(x) more than before, ``p_value`` of no change, and
            whether it ``moved``: by Benjamini and Hochberg's procedure at 0.001.
        p_value: of the batch's scores and the calibration's having one distribution.
        num_data: rows of the batch.
    """

    columns: pd.DataFrame
    p_value: float
    num_data: int

    @property
    def is_like(self) -> bool:
        """Whether nothing speaks against conformal p-values and thresholds on these rows."""
        return self.p_value >= ALPHA and not self.columns["moved"].any()

    def plot(self) -> Figure:
        """How far each column has shifted, the farthest first; those that moved are dark."""
        return plot_drift(self.columns)

    def __str__(self) -> str:
        moved = self.columns.index[self.columns["moved"]].tolist()
        scores = f"(p = {self.p_value:.2g} of the scores)"
        if self.is_like:
            return f"{self.num_data} rows: no sign of drift {scores}"
        what = f"columns that moved: {', '.join(map(str, moved))}" if moved else "no column moved"
        advice = "p-values and the threshold do not hold; fit anew on rows such as these"
        return f"{self.num_data} rows: drift {scores}; {what}; {advice}"


def drift_of(
    columns: Sequence[Column],
    known: np.ndarray,
    rows: np.ndarray,
    shares: Sequence[Shares],
    known_scores: np.ndarray,
    scores: np.ndarray,
    nats: np.ndarray | None,
) -> Drift:
    """Compares encoded rows ``(num_data, num_entries)`` and their scores with those of before.

    Numbers are compared by Kolmogorov and Smirnov's test, levels and missing entries by
    Pearson's. The time elapsed moves by itself: of dates the other parts count. `nats` are what
    each of the user's columns adds more than before, if that is known.
    """
    parts: dict[str, list[tuple[float, float]]] = {}
    for j, column in enumerate(columns):
        before, now = known[:, j], rows[:, j]
        tests = parts.setdefault(column.name, [])
        tests.append(_frequencies(np.isnan(before), np.isnan(now)))
        before, now = before[~np.isnan(before)], now[~np.isnan(now)]
        if not len(before) or not len(now) or column.part == "elapsed":
            continue
        if column.num_levels:
            tests.append(_frequencies(before, now))
        else:
            test = ks_2samp(before, now)
            tests.append((float(test.statistic), float(test.pvalue)))
    p_values = [min(1.0, len(tests) * min(p for _, p in tests)) for tests in parts.values()]
    of_names = {share.name: share for share in reversed(shares)}
    frame = pd.DataFrame(
        {
            "missing": [of_names[name].missing for name in parts],
            "new": [of_names[name].new for name in parts],
            "shift": [max(size for size, _ in tests) for tests in parts.values()],
            **({} if nats is None else {"nats": nats}),
            "p_value": p_values,
            "moved": false_discovery_control(p_values) < ALPHA,
        },
        index=list(parts),
    )
    return Drift(frame, float(ks_2samp(known_scores, scores).pvalue), len(rows))


def _frequencies(before: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    """The total variation between two samples of levels, and Pearson's p-value of no change."""
    table = pd.crosstab(
        np.repeat([0, 1], [len(before), len(now)]), np.concatenate([before, now])
    ).to_numpy()
    shares = table / table.sum(1, keepdims=True)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    rare = expected.min(0) < EXPECTED
    pooled = np.column_stack([table[:, ~rare], table[:, rare].sum(1)])
    pooled = pooled[:, pooled.sum(0) > 0]
    p_value = chi2_contingency(pooled).pvalue if pooled.shape[1] > 1 else 1.0
    return float(np.abs(shares[0] - shares[1]).sum() / 2), float(p_value)

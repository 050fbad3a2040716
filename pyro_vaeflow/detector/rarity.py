"""Rarity of a row and of its rarest entry: two p-values against training rows, and their sum."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from pyro_vaeflow.inference.noise import row_hash
from pyro_vaeflow.tables.columns import Column

MAX_ROWS = 2000  # that columns' densities are made of
# Half widths of boxes, in standard deviations: from values that repeat to none that is alike.
WIDTHS = np.array([1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 30.0, 1e3])
ROUNDS = 30  # of expectation maximisation
OF_ENTRIES = 0.5  # what the rarest entry counts for beside the row


def surprise(scores: ArrayLike, known: ArrayLike) -> np.ndarray:
    r"""-log of the share of known scores that are higher, nats, ``(num_data,)``; ties count half.

    Beyond the highest, where all p-values are alike, the logarithm of the distance from it is
    added, in units of the highest tenth's width.

    Args:
        scores: high = anomalous, ``(num_data,)``.
        known: of rows that are not anomalies, mostly, ``(n,)``.

    Example:
        >>> surprise([0.5, 9.0, 90.0], known=np.arange(10.0)).round(1).tolist()
        [0.1, 2.4, 6.9]
    """
    scores, known = np.asarray(scores, dtype=float), np.sort(np.asarray(known, dtype=float))
    if not len(known):
        return np.zeros(len(scores))
    count, top = len(known), known[-1]
    rank = 0.5 * (np.searchsorted(known, scores) + np.searchsorted(known, scores, side="right"))
    width = max(top - known[max(0, int(0.9 * count) - 1)], 1e-3 * abs(top) + 1e-9)
    return -np.log((count - rank + 0.5) / (count + 1)) + np.log1p(
        np.maximum(scores - top, 0.0) / width
    )


class Rarity:
    r"""How rare rows are, by their evidence and by their rarest entry: Fisher's combination.

    .. math:: s(x) = \log p_{row}(x) + \tfrac12 \log p_{entry}(x)

    :math:`p_{row}` is the share of training rows whose evidence is lower. :math:`p_{entry}` is
    that of the training rows whose rarest entry is rarer: an entry's rarity is its own p-value,
    by the density of its column alone, so that columns compare. The density of numbers,
    :math:`\sum_k w_k \#\{m : |x_j - x_{mj}| \le h_k\} / (2 h_k M)`, has weights of largest
    leave-one-out likelihood: a column of codes or of a lattice gets narrow boxes, and then a value
    that was never seen is rare. A training row is left out of what it is compared with.

    References:
        I. J. Good, On the weighted combination of significance tests, Journal of the Royal
        Statistical Society B 17, 1955.
        R. Duin, On the choice of smoothing parameters for Parzen estimators of probability density
        functions, IEEE Transactions on Computers C-25, 1976: leave-one-out likelihood.

    Args:
        rows: of training, encoded, ``(n, num_columns)``.
        columns: what they hold.
        evidence: of the rows, as if each were no training row, ``(n,)``, nats.

    Example:
        >>> rows = torch.arange(20.0).repeat(10)[:, None]
        >>> column = Column("a", "continuous")
        >>> rarity = Rarity(rows, [column], evidence=np.zeros(200))
        >>> seen, unseen = rarity(torch.tensor([[3.0], [3.5]]), evidence=np.zeros(2))
        >>> bool(unseen < seen)
        True
    """

    def __init__(self, rows: torch.Tensor, columns: Sequence[Column], evidence: ArrayLike) -> None:
        self.rows, self.evidence = rows.cpu(), np.asarray(evidence, dtype=float)
        values = self.rows.double().numpy()
        self._columns = [
            _Levels(values[:, j], c.num_levels) if c.num_levels else _Numbers(values[:, j])
            for j, c in enumerate(columns)
        ]
        self._hashes = row_hash(self.rows)
        own = np.ones(len(values), dtype=bool)
        self._known = [c.rarity(values[:, j], own) for j, c in enumerate(self._columns)]
        self._rarest = self._of_entries(values, own).max(1)

    def __call__(self, x: torch.Tensor, evidence: ArrayLike) -> np.ndarray:
        """s(x) of encoded rows with their evidence, ``(num_data,)``, nats; low = anomalous."""
        x = x.cpu()
        own = torch.isin(row_hash(x), self._hashes).numpy()
        rarest = self._of_entries(x.double().numpy(), own).max(1)
        of_rows = surprise(-np.asarray(evidence, dtype=float), -self.evidence)
        return -of_rows - OF_ENTRIES * surprise(rarest, self._rarest)

    def _of_entries(self, values: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Each entry's surprise, ``(num_data, num_columns)``; 0 where it is missing."""
        parts = [
            surprise(column.rarity(values[:, j], own), known[~np.isnan(known)])
            for j, (column, known) in enumerate(zip(self._columns, self._known, strict=True))
        ]
        return np.nan_to_num(np.stack(parts, 1), nan=0.0)


class _Numbers:
    """The density of a column of numbers: boxes of several widths."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.sort(values[~np.isnan(values)])
        self.weights = np.full(len(WIDTHS), 1.0 / len(WIDTHS))
        boxes = self._boxes(self.values, np.ones(len(self.values), dtype=bool))
        for _ in range(ROUNDS):
            parts = boxes * self.weights
            total = (parts / (parts.sum(1, keepdims=True) + 1e-300)).sum(0) + 1.0
            self.weights = total / total.sum()

    def _boxes(self, values: np.ndarray, own: np.ndarray) -> np.ndarray:
        low, high = values[:, None] - WIDTHS, values[:, None] + WIDTHS
        counts = np.searchsorted(self.values, high, side="right") - own[:, None]
        counts = counts - np.searchsorted(self.values, low)
        return counts / (2.0 * WIDTHS * np.maximum(len(self.values) - own, 1)[:, None])

    def rarity(self, values: np.ndarray, own: np.ndarray) -> np.ndarray:
        """-log density, ``(num_data,)``; `own` are training rows, left out of it."""
        density = np.log(self._boxes(values, own) @ self.weights + 1e-12)
        return np.where(np.isnan(values), np.nan, -density)


class _Levels:
    """The shares of a column's levels, and of those that are new, by Good and Turing."""

    def __init__(self, values: np.ndarray, num_levels: int) -> None:
        codes = values[~np.isnan(values)].astype(int)
        self.counts = np.bincount(codes, minlength=num_levels)
        self.new = ((self.counts == 1).sum() + 0.5) / max(1, len(codes))

    def rarity(self, values: np.ndarray, own: np.ndarray) -> np.ndarray:
        """-log share, ``(num_data,)``; `own` are training rows, left out of it."""
        counts = self.counts[np.nan_to_num(values).astype(int)] - own
        share = np.where(
            counts > 0, counts * (1.0 - self.new) / max(1, self.counts.sum()), self.new
        )
        return np.where(np.isnan(values), np.nan, -np.log(share))

"""Rarity of a row, of its place and of its rarest entry: p-values against training rows."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from pyro_vaeflow.inference.noise import row_hash
from pyro_vaeflow.tables.columns import Column

MAX_ROWS = 2000  # that rows are compared with,
MAX_SCORED = 500  # and of which the evidence is known
BLOCK = 4096  # rows at a time: as points they can be far wider than as codes
# Half widths of boxes, in standard deviations: the narrowest for values that repeat, the widest so
# that hardly a value has density 0.
WIDTHS = np.array([1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 30.0, 1e3])
FAR = 1e3  # standard deviations: squares of more drown the other columns
ROUNDS = 30  # of expectation maximisation
MOST = 2 / 3  # of the rows; by the development tables of results/oddbench
GROUP = 20  # rows: in such a group an anomaly mostly has no row of its kind
OF_TRAINING = np.array([0.5, 2.0, 0.5])  # weights of the three terms; their sum is 3, too


class Rarity:
    r"""How rare rows are: by their evidence, their nearest training row and their rarest entry.

    .. math:: s(x) = \log p_{evidence}(x) + \log p_{near}(x) + \log p_{entry}(x)

    This is Fisher's combination of tests. Each p-value is the share of training rows that are rarer
    in this respect: what a smooth density gives away, that a row or a value was seen before, is in
    the latter two. Entries compare by p-values, too, under the density of their column alone,
    :math:`\sum_k w_k \#\{m : |x_j - x_{mj}| \le h_k\} / (2 h_k M)`, with weights of largest
    leave-one-out likelihood. Levels, codes and lattices get narrow boxes, and then a value that was
    never seen is rare.

    The time elapsed of dates counts in the evidence alone: it moves by itself, and later rows would
    all be at its end.

    Unless rows repeat (`mostly_distinct`), a row that equals a training row is one, and is scored
    as rows of a table are that may hold anomalies: it is not compared with itself, its nearest row
    may be one of its kind, so that `isolation` takes the place of the distance to it, and the other
    two terms, which it has taught, weigh a quarter of this one.

    References:
        R. A. Fisher, Statistical Methods for Research Workers, 4th edition, 1932, section 21.1.
        R. Duin, On the choice of smoothing parameters for Parzen estimators of probability density
        functions, IEEE Transactions on Computers C-25, 1976: leave-one-out likelihood.

    Args:
        columns: of the encoded rows.
        rows: of training, encoded, ``(n, num_columns)``.
        evidence: of some of them, nats.
        hashes: of all training rows, by `row_hash`; by default of `rows`.

    Example:
        >>> rows = torch.arange(20.0).repeat(10)[:, None]
        >>> rarity = Rarity([Column("code", "continuous")], rows, evidence=np.zeros(200))
        >>> seen, unseen = rarity(torch.tensor([[3.0], [3.5]]), evidence=np.zeros(2))
        >>> bool(unseen < seen)
        True
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: torch.Tensor,
        evidence: ArrayLike,
        hashes: torch.Tensor | None = None,
    ) -> None:
        self.rows, self.evidence = rows.cpu(), np.asarray(evidence, dtype=float)
        self.hashes = row_hash(self.rows) if hashes is None else hashes.cpu()
        stays = [place for place, column in enumerate(columns) if column.part != "elapsed"]
        self._places = stays or list(range(len(columns)))
        self._columns = [columns[place] for place in self._places]
        values = self.rows.double().numpy()[:, self._places]
        self._are_distinct = mostly_distinct(self.rows)
        levels = np.array([column.num_levels for column in self._columns])
        self._has_levels = levels > 0
        # A gap here is a level of its own, so that a gap in any row to score adds the same to all.
        known = np.where(np.isnan(values) & self._has_levels, levels, values)
        # A tree, as a row's distances must not depend on the rows beside it.
        self._tree = cKDTree(points(self._columns, known))
        self._values = [np.sort(v[~np.isnan(v)]) for v in values.T]
        self._weights = [_weights(known) for known in self._values]
        entries = self._entries(values, np.ones(len(rows), dtype=bool))
        self._of_entry = [Surprise(known) for known in entries]
        self._of_evidence = Surprise(-self.evidence)
        self._known = points(self._columns, values)
        self._of_nearest = Surprise(self._near(values, self._known)[:, 1])  # the first is itself
        self._of_rarest = Surprise(self._rarest(entries))

    def __call__(self, x: torch.Tensor, evidence: ArrayLike) -> np.ndarray:
        """s(x) of encoded rows with their evidence, ``(num_data,)``, nats; low = anomalous."""
        return self.log_p_values(x, evidence).sum(axis=1).to_numpy()

    def log_p_values(self, x: torch.Tensor, evidence: ArrayLike) -> pd.DataFrame:
        """The three terms of s(x), a column each, nats."""
        x = x.cpu()
        own = torch.isin(row_hash(x), self.hashes).numpy() & self._are_distinct
        blocks = range(0, max(len(x), 1), BLOCK)
        parts = [self._compared(x[b : b + BLOCK], own[b : b + BLOCK]) for b in blocks]
        terms = np.vstack([self._of_evidence(-np.asarray(evidence)), np.hstack(parts)])
        terms[:, own] *= OF_TRAINING[:, None]
        return -pd.DataFrame(terms.T, columns=["log_p_evidence", "log_p_nearest", "log_p_entry"])

    @cached_property
    def _of_isolation(self) -> "Surprise":
        return Surprise(isolation(self._known, self._known))

    def _compared(self, x: torch.Tensor, own: np.ndarray) -> np.ndarray:
        """The surprise of the nearest row and of the rarest entry, ``(2, num_data)``."""
        values = x.double().numpy()[:, self._places]
        at = points(self._columns, values)
        nearest = self._of_nearest(self._near(values, at)[:, 0])
        if own.any():
            nearest[own] = self._of_isolation(isolation(at[own], self._known))
        return np.stack([nearest, self._of_rarest(self._rarest(self._entries(values, own)))])

    def _near(self, values: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Distances to the two nearest rows, ``(num_data, 2)``; a missing level adds nothing.

        Args:
            at: the values as `points`.
        """
        squares = self._tree.query(at, [1, 2])[0] ** 2
        gaps = np.isnan(values[:, self._has_levels]).sum(axis=1, keepdims=True)
        return np.sqrt(np.maximum(squares - gaps / 2, 0.0))

    def _entries(self, values: np.ndarray, own: np.ndarray) -> list[np.ndarray]:
        """-log density of the entries of each column, NaN where missing."""
        parts = zip(self._values, self._weights, values.T, strict=True)
        densities = ((_boxes(known, v, own) @ weights, v) for known, weights, v in parts)
        return [np.where(np.isnan(v), np.nan, -np.log(density + 1e-12)) for density, v in densities]

    def _rarest(self, entries: list[np.ndarray]) -> np.ndarray:
        """The rarest entry's surprise, ``(num_data,)``; a missing one is not rare."""
        pairs = zip(self._of_entry, entries, strict=True)
        return np.max([np.nan_to_num(surprise(values)) for surprise, values in pairs], axis=0)


class Surprise:
    """-log of the share of known scores that are higher, nats; ties count half.

    It is linear in the rank between known scores, and beyond the highest, where all p-values are
    alike, it rises with the logarithm of the distance. Scores of copies and of points of a lattice
    differ by rounding: they tie to four decimals. Where no score is known, it is 0.

    Args:
        known: scores, ``(n,)``; those that are not finite do not count.

    Example:
        >>> Surprise(known=np.arange(10.0))(np.array([0.5, 9.0, 90.0])).round(1).tolist()
        [0.1, 2.4, 6.9]
    """

    def __init__(self, known: np.ndarray) -> None:
        known = known[np.isfinite(known)].round(4)
        self._values, counts = np.unique(known, return_counts=True)
        self._ranks, self._count = counts.cumsum() - 0.5 * counts, len(known)
        if len(known):
            self._top = self._values[-1]
            spread = self._top - np.quantile(known, 0.9)
            self._tail = max(spread, 1e-3 * abs(self._top) + 1e-9)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Of scores ``(num_data,)``, NaN where they are."""
        if not self._count:
            return np.zeros(len(scores))
        scores = scores.round(4)
        rank = np.interp(scores, self._values, self._ranks)
        beyond = np.log1p(np.maximum(scores - self._top, 0.0) / self._tail)
        return beyond - np.log((self._count - rank + 0.5) / (self._count + 1))


def isolation(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How isolated points are from known ones, their copies left out, ``(num_data,)``.

    The mean, over groups of 20 known points, of the distance to the nearest of the group. That of
    all would be short for anomalies of one kind, which many groups have none of.

    References:
        M. Sugiyama, K. Borgwardt, Rapid distance-based outlier detection via sampling, 2013.
        T. Bandaragoda and others, Isolation-based anomaly detection using nearest-neighbor
        ensembles, Computational Intelligence 34, 2018.

    Example:
        >>> known = np.linspace(0.0, 1.0, 400)[:, None]
        >>> known[:8] += 5.0  # anomalies that are alike: none is far from its nearest neighbour
        >>> sorted(isolation(known, known).argsort()[-8:].tolist()) == list(range(8))
        True
    """
    count = max(1, len(known) // GROUP)
    total, num_groups = np.zeros((2, len(x)))
    for first in range(count):
        distances = cdist(x, known[first::count])
        nearest = np.where(distances > 0.0, distances, np.inf).min(axis=1)
        total += np.where(nearest < np.inf, nearest, 0.0)
        num_groups += nearest < np.inf
    return total / np.maximum(num_groups, 1.0)


def mostly_distinct(rows: torch.Tensor) -> bool:
    """Whether a row that equals one of `rows` must be that one: most of them have no copy.

    Example:
        >>> mostly_distinct(torch.tensor([[1.0], [2.0], [3.0]])), mostly_distinct(torch.ones(3, 1))
        (True, False)
    """
    _, copies = row_hash(rows).unique(return_counts=True)
    return bool((copies == 1).sum() > MOST * len(rows))


def points(columns: Sequence[Column], rows: np.ndarray) -> np.ndarray:
    """Encoded rows as points: other levels are at distance 1, missing numbers at the mean, 0.

    A missing level is at a squared distance of 1/2 from all, the code ``num_levels`` among them.

    Example:
        >>> columns = [Column("size", "continuous"), Column("kind", "categorical", levels=["a"])]
        >>> points(columns, np.array([[0.3, 1.0], [np.nan, 0.0]])).round(1).tolist()
        [[0.3, 0.0, 0.7, 0.0], [0.0, 0.7, 0.0, 0.0]]
    """
    parts = []
    for column, values in zip(columns, rows.T, strict=True):
        one_hot = (values[:, None] == np.arange(column.num_levels + 1)) / 2**0.5
        numbers = np.nan_to_num(values)[:, None].clip(-FAR, FAR)
        parts.append(one_hot if column.num_levels else numbers)
    return np.hstack(parts)


def _boxes(known: np.ndarray, values: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Densities by boxes of each width, ``(num_data, num_widths)``, without itself where `own`."""
    counts = np.searchsorted(known, values[:, None] + WIDTHS, side="right") - own[:, None]
    counts = counts - np.searchsorted(known, values[:, None] - WIDTHS)
    counts = np.maximum(counts, 0)  # a missing entry is in no box, its own neither
    return counts / (2.0 * WIDTHS * np.maximum(len(known) - own, 1)[:, None])


def _weights(known: np.ndarray) -> np.ndarray:
    """Of the widths, of about the largest leave-one-out likelihood of sorted values."""
    weights = np.full(len(WIDTHS), 1.0 / len(WIDTHS))
    boxes = _boxes(known, known, np.ones(len(known), dtype=bool))
    for _ in range(ROUNDS):
        parts = boxes * weights + 1e-300
        # One more for each: at weight 0 a value that was never seen would have no density.
        total = (parts / parts.sum(1, keepdims=True)).sum(0) + 1.0
        weights = total / total.sum()
    return weights

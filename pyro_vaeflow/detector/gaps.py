"""Rows with gaps beside complete ones: what their evidence would be if nothing were missing."""

from typing import Self

import numpy as np
from sklearn.linear_model import LinearRegression, RidgeCV

FEWEST = 20  # rows with a gap, or there is nothing to learn of gaps
STRAY = 5.0  # mean absolute deviations: what lies beyond counts no more
LEAST = 0.2  # of a complete row's spread


class GapScale:
    r"""Brings scores to the location and spread of complete rows.

    A row's evidence is a sum over the entries that are there: beside rows with gaps complete ones
    look anomalous. Of scores :math:`s` of rows that are kept from training and masks :math:`m` of
    their missing entries it learns a mean :math:`\mu(m)`, linear in the mask, and a spread
    :math:`\sigma(k)`, linear in the number of missing entries. A row then has

    .. math:: s' = \mu(0) + \frac{\sigma(0)}{\sigma(k)} (s - \mu(m)),

    its own score if nothing is missing.

    Args:
        coefficients: of the entries in the mean, then the slope of the spread over the spread of
            complete rows; then :math:`\mu(0)`. Empty where gaps make no difference.
    """

    def __init__(self, coefficients: np.ndarray) -> None:
        self.coefficients = coefficients

    @classmethod
    def learn(cls, scores: np.ndarray, is_missing: np.ndarray) -> Self:
        """Learns from scores ``(num_data,)`` and a mask ``(num_data, num_entries)``."""
        if (is_missing.any(1)).sum() < FEWEST:
            return cls(np.empty(0))
        masks = is_missing.astype(float)
        middle = np.median(scores)
        width = STRAY * np.abs(scores - middle).mean()
        scores = np.clip(scores, middle - width, middle + width)
        # A first line in the number of gaps: the ridge then only tells entries apart.
        count = masks.sum(1, keepdims=True)
        line = LinearRegression().fit(count, scores)
        rest = RidgeCV(np.logspace(-1, 4, 6)).fit(masks, scores - line.predict(count))
        residual = scores - line.predict(count) - rest.predict(masks)
        spread = LinearRegression().fit(count, np.abs(residual))
        slope = spread.coef_[0] / max(spread.intercept_, 1e-9)
        mean = line.intercept_ + rest.intercept_
        return cls(np.array([*(rest.coef_ + line.coef_[0]), slope, mean]))

    def adjusted(self, scores: np.ndarray, is_missing: np.ndarray) -> np.ndarray:
        """Scores ``(num_data,)`` as if the rows were complete; a mask as in `learn`."""
        if not len(self.coefficients):
            return scores
        *weights, slope, mean = self.coefficients
        expected = mean + is_missing @ np.array(weights)
        spread = np.maximum(1.0 + slope * is_missing.sum(1), LEAST)
        return np.where(is_missing.any(1), mean + (scores - expected) / spread, scores)

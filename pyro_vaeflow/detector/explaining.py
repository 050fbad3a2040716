"""What a fitted detector tells beside its scores: their precision, each column's part, figures."""

import warnings
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from sklearn.utils.validation import check_is_fitted

from pyro_vaeflow.inference.contributions import contributions
from pyro_vaeflow.inference.scoring import KhatWarning
from pyro_vaeflow.plots.history import plot_history
from pyro_vaeflow.plots.scores import plot_contributions, plot_scores
from pyro_vaeflow.tables.frames import as_table
from pyro_vaeflow.tables.reading import read_aloud
from pyro_vaeflow.validation import check_size


class Explaining:
    """The methods of `VAEFlowDetector` that explain its scores."""

    @property
    def columns_(self: Any) -> pd.DataFrame:
        """What `fit` took each column for: ``kind``, what it ``holds``, ``missing``, ``why``."""
        return read_aloud(self.encoder_.names_, self.encoder_.readings_)

    def score_details(self: Any, X: Any) -> pd.DataFrame:
        """Each row's evidence with its standard error, ESS and k-hat: `Scores` as a frame, nats.

        Its column ``score`` is what `score_samples` gives.
        A k-hat above 0.7 says that the log evidence is probably too low, as it often is for the
        most anomalous rows.
        """
        x = self._encoded(X)
        scores = self._scores(x)
        frame = scores.to_frame().assign(score=self._criterion(scores, x))
        return frame.set_index(_index(X, len(frame)))

    def explain(self: Any, X: Any, site: str = "x") -> pd.DataFrame:
        """What each column adds to a row's anomaly score, nats, in the table's columns and index.

        See `contributions`; a missing entry adds 0.

        Args:
            site: the observed site, for programs of one's own.
        """
        x = self._encoded(X)
        options: dict[str, Any] = {"num_samples": self.num_samples, "seed": self.seed_}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KhatWarning)
            nats = contributions(self.model_, self.guide_, x, site=site, **options)
        values = nats.cpu().numpy() + 0.0  # a missing entry's is -0.0
        return self.encoder_.sums(values).set_axis(_index(X, len(x)), axis=0)

    def plot_scores(self: Any, X: Any) -> Figure:
        """A histogram of the rows' anomaly scores, nats, with the threshold."""
        return plot_scores(-self.score_samples(X), -self.offset_)

    def plot_contributions(self: Any, X: Any, row: int = 0) -> Figure:
        """What the columns add to the anomaly score of one row, by its position in `X`, as bars."""
        X = as_table(X)
        check_size("row", row, 0, len(X) - 1)
        nats = self.explain(X.iloc[[row]] if isinstance(X, pd.DataFrame) else X[[row]])
        return plot_contributions(nats.iloc[0])

    def plot_history(self: Any) -> Figure:
        """The curves of training."""
        check_is_fitted(self)
        return plot_history(self.history_)


def _index(X: Any, num_data: int) -> pd.Index:
    return X.index if isinstance(X, pd.DataFrame) else pd.RangeIndex(num_data)

"""What a detector learns of rows kept from training: thresholds, also of groups, gaps, drift."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted

from pyro_vaeflow.detector import conformal
from pyro_vaeflow.detector.drifting import Drift, drift_of
from pyro_vaeflow.detector.gaps import GapScale
from pyro_vaeflow.detector.programs import table_of
from pyro_vaeflow.detector.rarity import BLOCK, MAX_ROWS, isolation, points
from pyro_vaeflow.detector.settings import CRITERIA
from pyro_vaeflow.inference.scoring import Scores
from pyro_vaeflow.tables.column_values import as_text
from pyro_vaeflow.tables.reading import Shares, read_aloud

FEWEST = 20  # rows of a group that is calibrated by itself, ...
FEWEST_FLAGGED = 2.5  # ... of which so many are to be flagged: then twice the share mostly is not
MAX_REFERENCE = 1000  # of them, whose columns later rows are compared with
MAX_CALIBRATION = 10_000  # rows kept from training: more would take longer than training


class Calibrated:
    """What `VAEFlowDetector` knows of tables beside its programs."""

    @property
    def columns_(self: Any) -> pd.DataFrame:
        """A frame of what `fit` took each column for, what it holds, the share missing, and why."""
        return read_aloud(self.encoder_.names_, self.encoder_.readings_)

    def shares(self: Any, X: Any) -> list[Shares]:
        """How many entries of each column are such as no training row shows, or missing."""
        check_is_fitted(self)
        return self.encoder_.encode(table_of(self, X, reset=False))[1]

    def drift(self: Any, X: Any) -> Drift:
        """Whether rows are like those kept from training; where not, p-values do not hold.

        Raises:
            ValueError: there is no row, or none was kept from training.
        """
        frame = table_of(self, X, reset=False)
        num_known = min(len(self.reference_), len(self.calibration_scores_))
        if not len(frame) or not num_known:
            raise ValueError(
                f"drift needs rows, and rows kept from training to compare with; got {len(frame)} "
                f"and {num_known}"
            )
        x, shares = self.encoder_.encode(frame)
        scores = self._score_encoded(self._to_score(x))
        columns, known, nats = self.encoder_.columns_, self.reference_, None
        if self.model is None:  # programs of one's own may observe another site
            batches = (torch.as_tensor(known), x[:: 1 + len(x) // MAX_REFERENCE])
            before, now = (self._contributions(self._to_score(b)).mean() for b in batches)
            nats = (now - before).to_numpy()
        known_scores = self.calibration_scores_
        return drift_of(columns, known, x.numpy(), shares, known_scores, scores, nats)

    def offsets(self: Any, X: Any) -> np.ndarray:
        """The threshold of each row, ``(num_data,)``, nats: ``offset_``, or that of its group."""
        return self._known_groups(X).map(self.offsets_).fillna(self.offset_).to_numpy(float)

    def p_values(self: Any, X: Any) -> np.ndarray:
        """Conformal p-values against the rows kept from training, low = anomalous, ``(num_data,)``.

        See `pyro_vaeflow.detector.conformal.p_values`; those of a group with a threshold of its own
        are against the rows of this group. Calibration rows count alike, whatever their
        ``sample_weight``; anomalies among them make the p-values too large, never too small.

        Raises:
            ValueError: no rows were kept from training.
        """
        scores, known = self.score_samples(X), self.calibration_scores_
        if not len(known):
            raise ValueError(
                f"p-values need rows kept from training, and calibration_share="
                f"{self.calibration_share!r} of the rows was none; fit with more, 0.2 say"
            )
        values = conformal.p_values(scores, known)
        groups = self._known_groups(X).to_numpy()
        for group in self.offsets_:
            rows, is_known = groups == group, self.calibration_groups_ == group
            values[rows] = conformal.p_values(scores[rows], known[is_known])
        return values

    def _groups(self: Any, frame: pd.DataFrame) -> pd.Series:
        """The group of each row, a text; "" where it is missing."""
        if self.groups is None:
            return pd.Series("", index=frame.index)
        of_texts = {str(name): name for name in frame}
        if self.groups not in of_texts:
            raise ValueError(f"groups must name a column of X, got {self.groups!r}")
        return as_text(frame[of_texts[self.groups]]).astype(object).fillna("")

    def _known_groups(self: Any, X: Any) -> pd.Series:
        """The groups of rows to score; "" of those without a threshold of their own."""
        groups = self._groups(table_of(self, X, reset=False))
        return groups.where(groups.isin(list(self.offsets_)), "")

    def _learn_groups(
        self: Any, groups: pd.Series, scores: np.ndarray, kept: np.ndarray, weights: Any
    ) -> None:
        """The thresholds of groups; the small ones are one, and without it if it is small, too."""
        share = conformal.AUTO if isinstance(self.contamination, str) else self.contamination
        fewest = max(FEWEST, FEWEST_FLAGGED / share)
        groups = groups.where(groups.map(groups.value_counts()) >= fewest, "")
        self.offsets_ = {}
        for group, count in groups.value_counts().items() if self.groups is not None else ():
            if count >= fewest:
                rows = (groups == group).to_numpy()
                of_rows = None if weights is None else weights[rows]
                self.offsets_[group] = conformal.threshold(
                    scores[rows], kept[rows[: len(kept)]], self.contamination, of_rows
                )
        order = np.argsort(kept, kind="stable")
        self.calibration_scores_ = kept[order]
        self.calibration_groups_ = groups.to_numpy(object)[: len(kept)][order]

    def _num_kept(self: Any, num_data: int) -> int:
        return min(round(self.calibration_share * num_data), MAX_CALIBRATION)

    def _mostly_clean(
        self: Any, rows: torch.Tensor, weight: np.ndarray | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows to train on: of a known share of anomalies, without twice as many isolated ones.

        A density would learn an anomaly that comes again and again, and find it usual; it misses
        an anomaly's like more than a few of the outermost rows.
        """
        weights = None if weight is None else torch.as_tensor(weight)
        if isinstance(self.contamination, str):
            return rows, weights
        columns = self.encoder_.columns_
        known = points(columns, rows[:MAX_ROWS].double().numpy())
        blocks = (points(columns, block.double().numpy()) for block in rows.split(BLOCK))
        nearest = torch.cat([torch.as_tensor(isolation(block, known)) for block in blocks])
        num_kept = len(rows) - int(min(2.0 * self.contamination, 0.5) * len(rows))
        kept = nearest.argsort(stable=True)[:num_kept].sort().values
        return rows[kept], None if weights is None else weights[kept]

    def _calibrate(
        self: Any, frame: pd.DataFrame, fresh: np.ndarray, weights: np.ndarray | None
    ) -> None:
        """The threshold, from rows kept from training; from all, or many, if none was kept."""
        used = fresh if len(fresh) else np.arange(len(frame))
        if len(used) > MAX_CALIBRATION:
            used = np.random.default_rng(self.seed_).permutation(used)[:MAX_CALIBRATION]
        frame = frame.iloc[used].reset_index(drop=True)
        x, _ = self.encoder_.encode(frame)
        self.reference_ = x[:MAX_REFERENCE].numpy()
        x = self._to_score(x)
        self.gaps_ = GapScale(np.empty(0))
        scores, is_missing = self._score_encoded(x), x.isnan().cpu().numpy()
        self.gaps_ = GapScale.learn(scores, is_missing)
        scores = self.gaps_.adjusted(scores, is_missing)
        kept = scores[: len(fresh)]
        weights = None if weights is None else weights[used]
        self.offset_ = conformal.threshold(scores, kept, self.contamination, weights)
        self._learn_groups(self._groups(frame), scores, kept, weights)

    def _score_encoded(self: Any, x: torch.Tensor) -> np.ndarray:
        return self._criterion(self._scores(x), x)["score"].to_numpy()

    def _criterion(self: Any, scores: Scores, x: torch.Tensor) -> pd.DataFrame:
        """What `score_samples` gives of the rows, ``score``, after what it adds up if it does."""
        self._check_criterion()
        values = getattr(scores, CRITERIA[self.criterion]).cpu().numpy().astype(np.float64)
        parts = pd.DataFrame(index=range(len(values)))
        if self.rarity_ is not None:
            parts = self.rarity_.log_p_values(x, values)
            values = parts.sum(axis=1).to_numpy()
        return parts.assign(score=self.gaps_.adjusted(values, x.isnan().cpu().numpy()))

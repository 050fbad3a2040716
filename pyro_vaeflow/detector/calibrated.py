"""What a detector learns of rows that are kept from training: its threshold, and gaps in rows."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import IsolationForest
from sklearn.utils.validation import check_is_fitted

from pyro_vaeflow.detector import conformal
from pyro_vaeflow.detector.drifting import Drift, drift_of
from pyro_vaeflow.detector.gaps import GapScale
from pyro_vaeflow.detector.programs import table_of
from pyro_vaeflow.detector.settings import CRITERIA
from pyro_vaeflow.inference.scoring import Scores
from pyro_vaeflow.tables.reading import Shares, read_aloud

MAX_REFERENCE = 1000  # of them, whose columns later rows are compared with
MAX_CALIBRATION = 10_000  # rows kept from training: more would take longer than training


class Calibrated:
    """What `VAEFlowDetector` knows of tables beside its programs."""

    @property
    def columns_(self: Any) -> pd.DataFrame:
        """What `fit` took each column for: ``kind``, what it ``holds``, ``missing``, ``why``."""
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
        columns, known = self.encoder_.columns_, self.reference_
        return drift_of(columns, known, x.numpy(), shares, self.calibration_scores_, scores)

    def _num_kept(self: Any, num_data: int) -> int:
        return min(round(self.calibration_share * num_data), MAX_CALIBRATION)

    def _mostly_clean(
        self: Any, rows: torch.Tensor, weight: np.ndarray | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows to train on: of a known share of anomalies, without the most isolated ones.

        A density would learn an anomaly that comes again and again, and find it usual.
        """
        weights = None if weight is None else torch.as_tensor(weight)
        if isinstance(self.contamination, str):
            return rows, weights
        forest = IsolationForest(contamination=self.contamination, random_state=self.seed_)
        kept = torch.as_tensor(forest.fit_predict(rows.numpy()) > 0)
        return rows[kept], None if weights is None else weights[kept]

    def _calibrate(
        self: Any, frame: pd.DataFrame, fresh: np.ndarray, weights: np.ndarray | None
    ) -> None:
        """The threshold, from rows kept from training; from all, or many, if none was kept."""
        used = fresh if len(fresh) else np.arange(len(frame))
        if len(used) > MAX_CALIBRATION:
            used = np.random.default_rng(self.seed_).permutation(used)[:MAX_CALIBRATION]
        x, _ = self.encoder_.encode(frame.iloc[used])
        self.reference_ = x[:MAX_REFERENCE].numpy()
        x = self._to_score(x)
        self.gaps_ = GapScale(np.empty(0))
        scores, is_missing = self._score_encoded(x), x.isnan().cpu().numpy()
        self.gaps_ = GapScale.learn(scores, is_missing)
        scores = self.gaps_.adjusted(scores, is_missing)
        kept = scores[: len(fresh)]
        self.calibration_scores_ = np.sort(kept)
        weights = None if weights is None else weights[used]
        self.offset_ = conformal.threshold(scores, kept, self.contamination, weights)

    def _score_encoded(self: Any, x: torch.Tensor) -> np.ndarray:
        return self._criterion(self._scores(x), x)

    def _criterion(self: Any, scores: Scores, x: torch.Tensor) -> np.ndarray:
        """What `score_samples` gives of the rows, ``(num_data,)``."""
        values = getattr(scores, CRITERIA[self.criterion]).cpu().numpy().astype(np.float64)
        return self.gaps_.adjusted(values, x.isnan().cpu().numpy())

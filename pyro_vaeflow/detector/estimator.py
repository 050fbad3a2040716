"""The scikit-learn face: a table goes in, scores, reasons and decisions come out."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from pyro_vaeflow.detector import conformal
from pyro_vaeflow.detector.calibrated import Calibrated
from pyro_vaeflow.detector.programs import Programs, table_of
from pyro_vaeflow.detector.saving import load_detector, save_detector
from pyro_vaeflow.detector.settings import DetectorSettings
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.metrics import number_flagged
from pyro_vaeflow.plots.charts import plot_contributions, plot_history, plot_scores
from pyro_vaeflow.programs.fitting import fit
from pyro_vaeflow.tables.frames import as_table
from pyro_vaeflow.tables.mixed_encoder import MixedEncoder
from pyro_vaeflow.validation import check_size, warn


class VAEFlowDetector(DetectorSettings, Programs, Calibrated, OutlierMixin, BaseEstimator):
    r"""Finds anomalous rows of a table by a variational autoencoder, and by what it saw before.

    A row's score is low where its evidence :math:`\log p(x)`, by importance sampling, is lower than
    that of training rows, it is farther from them than they are from each other, or one of its
    entries is rare: `Rarity`. It depends on the row and the seed alone. Columns can be numbers,
    categories, booleans, texts and dates, with gaps, as `pyro_vaeflow.detector.gaps` says; NumPy
    arrays will do as well.

    Args:
        flow: the posterior, a name in `pyro_vaeflow.programs.flows.FLOWS`.
        num_flows: its transforms; by default 10 for ``planar``, 5 for ``iaf``, 2 for ``spline``.
        latent_dim: size of z; None for one per column, up to 64.
        hidden_dims: widths of both networks.
        num_steps: mini-batches of training.
        batch_size: rows in a mini-batch.
        learning_rate: of Adam at the start; it falls to a sixtieth along a cosine.
        num_samples: samples of z for a row's score, at least 2.
        criterion: ``combined`` for the three together; ``importance`` for log p(x) itself;
            ``reconstruction`` for E_q[log p(x | z)], the negative of the paper's A(x). Thresholds
            are those of the criterion in `fit`.
        contamination: the share of anomalies, in (0, 0.5]: so many rows like the training rows are
            flagged, and twice as many, the most isolated, are not trained on; ``"auto"``: 0.05, and
            all are. A training row is not scored as a new one: `Rarity`.
        kinds: column name -> ``categorical``, ``discrete``, ``continuous``, ``positive`` or
            ``date``, where the training rows should not decide. They find heavy tails above 0 to be
            positive. Identifiers are left out unless it names them.
        groups: a column whose values have thresholds and p-values of their own; those with few rows
            share one.
        prior: ``exemplar``, a mixture around training rows, or ``normal``.
        calibration_share: of the training rows, kept from training for conformal p-values.
        validation_share: of the others, at most 500, whose ELBO chooses the step to keep.
        random_state: an integer, a ``RandomState`` or None.
        warm_start: whether a further `fit` trains the programs at hand on, with new rows: columns
            and seed stay as they are, and an exemplar prior's rows are trained on beside the new.
        progress: whether training and scoring show bars.
        checkpoint_dir: a folder where `fit` keeps what it needs to resume after it was killed or
            interrupted; the same `fit`, of a new detector too, then ends bit for bit as if nothing
            had happened. Fits of other settings or rows have folders of their own in it.
        device: where torch trains and scores, ``cuda`` say; programs and rows go there with the
            next call, and results are NumPy's wherever it is. A saved detector does not know it.
        model, guide: a pair of programs of one's own, given together, in place of the
            autoencoder. Their rows are those of `MixedEncoder`, with numbers standardised: codes of
            texts, and NaN where entries are missing. `fit` trains copies of modules; a plain
            function keeps its own modules.

    Attributes:
        offset_: the score below which rows are flagged, nats.
        offsets_: group -> its threshold, nats; empty without `groups`.
        n_features_in_, feature_names_in_: of the table, names if all are texts.
        columns_, encoder_: what each column was taken for, a frame; the fitted `MixedEncoder`.
        model_, guide_: the trained programs.
        rarity_: what ``combined`` compares rows with, a `Rarity`; None of other criteria.
        history_: of training, a frame with one row per step.
        calibration_scores_: of the rows kept from training.
        seed_: what random_state gave.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"size": np.linspace(0.0, 1.0, 40), "kind": 20 * ["a", "b"]})
        >>> detector = VAEFlowDetector(num_steps=20, random_state=0).fit(frame)
        >>> detector.predict(frame).shape
        (40,)
        >>> list(detector.explain(frame.head(3)))
        ['size', 'kind']
    """

    @torch.inference_mode(False)  # gradients, whatever the caller has switched off
    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Learns the columns and trains the programs on the rows ``(num_data, num_columns)``.

        Ctrl-C ends training after the step at hand, with a warning and a fitted detector.

        Args:
            y: ignored.
            sample_weight: ``(num_data,)``, at least 0: how often a row is drawn in training, and
                what it counts for in the threshold; rows are compared with those of any weight
                but 0, which are left out.

        Raises:
            ValueError: an argument is out of range, or the table cannot be learned from.
            NonFiniteError: training met a loss or gradient that is not finite.
            CheckpointError: the checkpoint is damaged, or in use by another process.
        """
        self._check()
        goes_on = self.warm_start and hasattr(self, "model_")
        if goes_on:
            self._check_built(self._built, "set it back, or fit anew with warm_start=False")
        frame, weights = table_of(self, X, reset=not goes_on), None
        if sample_weight is not None:
            options: dict[str, Any] = {"dtype": np.float64, "ensure_non_negative": True}
            weights = _check_sample_weight(sample_weight, frame, **options)
            frame, weights = frame[weights > 0], weights[weights > 0]
        if len(frame) < 2:
            raise ValueError(f"X must have at least 2 rows to train on, got n_samples={len(frame)}")
        self._groups(frame)  # that there are such: not only once it is trained
        if not goes_on:
            self.seed_ = self._seed()
        settings = self._for_fitting(self.seed_)
        # Held-out rows are the first ones, and a table can be sorted.
        order = np.random.default_rng(self.seed_).permutation(len(frame))
        fresh, used = np.split(order, [self._num_kept(len(frame))])
        if not len(used) - round(self.validation_share * len(used)):
            raise ValueError(
                f"calibration_share={self.calibration_share!r} and validation_share="
                f"{self.validation_share!r} leave none of {len(frame)} rows to train on; lower them"
            )
        if not goes_on:
            self.encoder_ = MixedEncoder(self._kinds(frame)).fit(frame.iloc[used])
        rows, _ = self.encoder_.encode(frame.iloc[used], not goes_on)
        rows, drawn = self._mostly_clean(rows, None if weights is None else weights[used])
        if not goes_on:
            self.model_, self.guide_ = self._programs(settings, rows)
            self._built = self._settings_built()
        self._convert(torch.float32)  # whatever torch's default is
        if goes_on:
            rows, drawn = self._with_earlier(rows, drawn)
        checkpoint = self._checkpoint(settings, rows, drawn, goes_on)
        rows = self._placed(rows)
        history = fit(settings, self.model_, self.guide_, rows, drawn, self.progress, checkpoint)
        self.history_ = history.frame
        self._convert(torch.float64)
        self._learn_rarity(rows)
        self._calibrate(frame, fresh, weights)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """What `criterion` names, of each row, ``(num_data,)``, nats; anomalies low.

        It is computed in double precision where the programs are a `Model` and a `Guide`, so that a
        row's score is the same whatever rows are beside it.
        """
        return self._score_encoded(self._encoded(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """`score_samples` less `offsets`, nats: negative for flagged rows, ``(num_data,)``."""
        return self.score_samples(X) - self.offsets(X)

    def predict(self, X: Any, fdr: float | None = None, ratio: float | None = None) -> np.ndarray:
        """-1 for anomalies, +1 for other rows, ``(num_data,)``, by `offset_` or in one of two ways.

        Args:
            fdr: the false-discovery rate to keep: the expected share of rows like the training rows
                among those flagged, by `p_values` and Benjamini and Hochberg's procedure.
            ratio: the share of these rows to flag, where it is known how many are anomalies.

        Raises:
            ValueError: both are given, one is out of range, or `fdr` has no calibration rows.

        Warns:
            UserWarning: `fdr` has too few calibration rows to flag any row, or ``"auto"`` flags
                all rows, or none of a hundred or more.
        """
        if fdr is not None and ratio is not None:
            raise ValueError(f"give one of fdr and ratio, got fdr={fdr!r} and ratio={ratio!r}")
        if fdr is not None:
            flagged = conformal.discoveries(self.p_values(X), fdr)
            num_kept = len(self.calibration_scores_)
            if (least := 1 / (1 + num_kept)) > fdr:
                why = f"with {num_kept} rows kept from training no p-value is below {least:.3g}"
                way_out = "fit with a larger calibration_share, or on more rows"
                warn(f"fdr={fdr!r} flags no row: {why}; {way_out}")
        elif ratio is not None:
            scores = self.score_samples(X)
            count = number_flagged(len(scores), ratio)
            flagged = np.isin(np.arange(len(scores)), np.argsort(scores, kind="stable")[:count])
        else:
            flagged = conformal.doubt(self.decision_function(X) < 0, self.contamination)
        return np.where(flagged, -1, 1)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean ELBO of the rows, nats: what a search over settings maximises on held-out rows.

        Values compare between settings of one encoding of the columns, not between `kinds`.

        Raises:
            ValueError: there is no row.
        """
        x = self._encoded(X)
        if not len(x):
            raise ValueError("X must have a row at least to have a mean ELBO, got n_samples=0")
        return float(self._scores(x).elbo.mean())

    def score_details(self, X: Any, refine: bool | str = False) -> pd.DataFrame:
        """Each row's evidence with its standard error, ESS and k-hat: `Scores` as a frame, nats.

        Its column ``score`` is what `score_samples` gives, of the criterion ``combined`` after the
        three logarithms that it adds up: which one is low says what is odd about a row. Their sum
        is the score of a row without gaps; others are brought to the scale of such rows.
        A k-hat above 0.7 says that the log evidence is probably too low, as it often is for the
        most anomalous rows. `refine` is as in `score`; `offset_` is for scores without it.
        """
        x = self._encoded(X)
        scores = self._scores(x, refine=refine)
        frame = scores.to_frame().join(self._criterion(scores, x))
        return frame.set_index(X.index) if isinstance(X, pd.DataFrame) else frame

    def explain(self, X: Any, site: str = "x") -> pd.DataFrame:
        """What each column adds to a row's -log p(x), nats, in the table's columns and index.

        That is one of three parts of the criterion ``combined``: see `score_details`.

        See `contributions`; a missing entry adds 0. Columns that are left out have none.

        Args:
            site: the observed site, for programs of one's own.
        """
        frame = self._contributions(self._encoded(X), site)
        return frame.set_axis(X.index, axis=0) if isinstance(X, pd.DataFrame) else frame

    def plot_scores(self, X: Any) -> Figure:
        """A histogram of the rows' anomaly scores, nats, with the threshold."""
        return plot_scores(-self.score_samples(X), -self.offset_)

    def plot_contributions(self, X: Any, row: int = 0) -> Figure:
        """What the columns add to -log p(x) of one row, by its position in `X`, as bars."""
        X = as_table(X)
        check_size("row", row, 0, len(X) - 1)
        nats = self.explain(X.iloc[[row]] if isinstance(X, pd.DataFrame) else X[[row]])
        return plot_contributions(nats.iloc[0])

    def plot_history(self) -> Figure:
        """The curves of training."""
        check_is_fitted(self)
        return plot_history(self.history_)

    def save(self, folder: str | Path) -> None:
        """Writes the detector to `folder`, tensors by safetensors and all else as JSON.

        Programs of one's own are code and are not saved; their parameters are.

        Raises:
            ValueError: a column name or setting has no JSON, or a setting is not that of `fit`.
        """
        check_is_fitted(self)
        self._check()
        self._check_built(self._built, "set it back, or fit again; nothing was saved")
        self._check_criterion()
        save_detector(self, folder)

    @classmethod
    def load(
        cls, folder: str | Path, model: Program | None = None, guide: Program | None = None
    ) -> "VAEFlowDetector":
        """The detector that `save` wrote, with the same scores bit for bit.

        Args:
            model, guide: programs of one's own, made as they were made before.

        Raises:
            FileNotFoundError: a file is missing.
            CheckpointError: a file is damaged, of another format, or not what `save` writes.
        """
        return load_detector(cls(model=model, guide=guide), folder)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        return tags

"""The scikit-learn face: a table goes in, scores, reasons and decisions come out."""

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from pyro_vaeflow.detector import conformal
from pyro_vaeflow.detector.saving import load_detector, save_detector
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.inference.contributions import contributions
from pyro_vaeflow.inference.devices import Device, check_device, move
from pyro_vaeflow.inference.fingerprint import named_digest, structure, tensor_digest
from pyro_vaeflow.inference.parameters import Program, modules
from pyro_vaeflow.inference.row_scores import Scores
from pyro_vaeflow.inference.scoring import KhatWarning, NoScoreWarning
from pyro_vaeflow.inference.state import state_of
from pyro_vaeflow.metrics import number_flagged
from pyro_vaeflow.plots.history import plot_history
from pyro_vaeflow.plots.scores import plot_contributions, plot_scores
from pyro_vaeflow.programs.fitting import build, fit, score_rows
from pyro_vaeflow.programs.priors import ExemplarPrior
from pyro_vaeflow.programs.vae import Guide, Model
from pyro_vaeflow.tables.column_values import is_numeric
from pyro_vaeflow.tables.frames import as_table
from pyro_vaeflow.tables.mixed_encoder import MixedEncoder
from pyro_vaeflow.validation import check_size

# Criterion -> the log probability of a row, in nats, that is its score.
CRITERIA = {"importance": "log_evidence", "reconstruction": "expected_log_likelihood"}
FLOW_OPTIONS = {"iaf": {"stable": True}}
AUTO = 0.05  # of fresh rows like the training rows are flagged where contamination is "auto"
COOLING = 60.0  # the learning rate at the start over that at the end
# What programs are made of: a warm start and a saved file know them by these.
BUILT = ("flow", "num_flows", "latent_dim", "hidden_dims", "prior", "model", "guide")


class VAEFlowDetector(OutlierMixin, BaseEstimator):
    r"""Finds odd rows of a table by their evidence under a variational autoencoder.

    A row's score is :math:`\log p(x)` in nats by importance sampling: low = odd. It depends on the
    row and the seed alone. Columns can be numbers, categories, booleans and texts, with missing
    entries; NumPy arrays will do as well.

    Args:
        flow: the posterior, a name in `pyro_vaeflow.programs.flows.FLOWS`.
        num_flows: its transforms; 0 for ``diagonal``.
        latent_dim: size of z; None for one a column, up to 64.
        hidden_dims: widths of both networks.
        num_steps: mini-batches of training.
        batch_size: rows a mini-batch.
        learning_rate: of Adam at the start; it falls to a sixtieth along a cosine.
        num_samples: draws of z for a row's score, at least 2.
        criterion: ``importance``, or ``reconstruction`` for E_q[log p(x | z)], the negative of the
            paper's A(x). (An argument named score would hide the method `score`.)
        contamination: the share of the training rows to flag, in (0, 0.5]; ``"auto"`` flags one in
            20 of fresh rows that are like the training rows, or one in n + 1 if only n rows, below
            19, are kept for calibration (a tenth of the training rows, unless it is set).
        kinds: column name -> ``categorical``, ``discrete``, ``continuous`` or ``positive``, where
            the training rows should not decide. They find heavy tails above 0 to be positive: then
            0 and below are as far away as a number can be.
        prior: ``exemplar``, a mixture around training rows, or ``normal``.
        calibration_share: of the training rows, kept from training for conformal p-values.
        validation_share: of the others, at most 500, whose ELBO chooses the step to keep.
        random_state: an integer, a ``RandomState`` or None.
        warm_start: whether a further `fit` goes on with the programs at hand, on new rows: columns
            and seed stay as they are, and an exemplar prior's rows are trained on beside the new.
        progress: whether training and scoring show bars.
        checkpoint_dir: a folder where `fit` keeps what it needs to go on after it was killed or
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
        n_features_in_, feature_names_in_: of the table, names if all are texts.
        encoder_: the fitted `MixedEncoder`.
        model_, guide_: the trained programs.
        history_: of training, a frame with one row a step; see `History`.
        calibration_scores_: of the rows kept from training.
        seed_: what random_state gave.

    Example:
        >>> frame = pd.DataFrame({"size": np.linspace(0.0, 1.0, 40), "kind": 20 * ["a", "b"]})
        >>> detector = VAEFlowDetector(num_steps=20, random_state=0).fit(frame)
        >>> detector.predict(frame).shape
        (40,)
        >>> list(detector.explain(frame.head(3)))
        ['size', 'kind']
    """

    _parameter_constraints = {
        "flow": [str],  # any that is registered by then
        "num_flows": [Interval(Integral, 0, 100, closed="both")],
        "latent_dim": [Interval(Integral, 1, None, closed="left"), None],
        "hidden_dims": [list, tuple],
        "num_steps": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, 1e6, closed="neither")],
        "num_samples": [Interval(Integral, 2, 1_000_000, closed="both")],
        "criterion": [StrOptions(set(CRITERIA))],
        "contamination": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"})],
        "kinds": [Mapping, None],
        "prior": [StrOptions({"exemplar", "normal"})],
        "calibration_share": [Interval(Real, 0, 1, closed="left")],
        "validation_share": [Interval(Real, 0, 1, closed="left")],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "progress": ["boolean"],
        "checkpoint_dir": [str, Path, None],
        "device": [str, torch.device],
        "model": [callable, None],
        "guide": [callable, None],
    }

    def __init__(
        self,
        flow: str = "diagonal",
        num_flows: int = 0,
        latent_dim: int | None = None,
        hidden_dims: Sequence[int] = (64, 64),
        num_steps: int = 1500,
        batch_size: int = 128,
        learning_rate: float = 0.006,
        num_samples: int = 50,
        criterion: str = "importance",
        contamination: float | str = "auto",
        kinds: Mapping[Any, str] | None = None,
        prior: str = "exemplar",
        calibration_share: float = 0.1,
        validation_share: float = 0.15,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        progress: bool = False,
        checkpoint_dir: str | Path | None = None,
        device: Device = "cpu",
        model: Program | None = None,
        guide: Program | None = None,
    ) -> None:
        self.flow = flow
        self.num_flows = num_flows
        self.latent_dim = latent_dim
        self.hidden_dims = hidden_dims
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.num_samples = num_samples
        self.criterion = criterion
        self.contamination = contamination
        self.kinds = kinds
        self.prior = prior
        self.calibration_share = calibration_share
        self.validation_share = validation_share
        self.random_state = random_state
        self.warm_start = warm_start
        self.progress = progress
        self.checkpoint_dir = checkpoint_dir
        self.device = device
        self.model = model
        self.guide = guide

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Learns the columns and trains the programs on the rows ``(num_data, num_columns)``.

        Ctrl-C ends training after the step at hand, with a warning and a fitted detector.

        Args:
            y: ignored.
            sample_weight: ``(num_data,)``, at least 0: how often a row is drawn in training, and
                what it counts for in the threshold. Rows of weight 0 are left out.

        Raises:
            ValueError: an argument is out of range, or the table cannot be learned from.
            NonFiniteError: training met a loss or gradient that is not finite.
            CheckpointError: the checkpoint is damaged, or in use by another process.
        """
        self._check()
        goes_on = self.warm_start and hasattr(self, "model_")
        if goes_on:
            self._check_built("set it back, or fit anew with warm_start=False")
        frame = self._frame(X, reset=not goes_on)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, frame.index.to_numpy(), dtype=np.float64, ensure_non_negative=True
            )
            frame, weights = frame[weights > 0], weights[weights > 0]
        if len(frame) < 2:
            raise ValueError(f"X must have at least 2 rows to train on, got n_samples={len(frame)}")
        if not goes_on:
            self.seed_ = _seed(self.random_state)
        config = self._config()
        # Held-out rows are the first ones, and a table can be sorted.
        order = np.random.default_rng(self.seed_).permutation(len(frame))
        kept, used = np.split(order, [round(self.calibration_share * len(frame))])
        if not len(used) - round(self.validation_share * len(used)):
            raise ValueError(
                f"calibration_share={self.calibration_share!r} and validation_share="
                f"{self.validation_share!r} leave none of {len(frame)} rows to train on; lower them"
            )
        if not goes_on:
            self.encoder_ = MixedEncoder(self._kinds(frame)).fit(frame.iloc[used])
        x = self.encoder_.transform(frame)
        rows, drawn = x[used], None if weights is None else torch.as_tensor(weights[used])
        if goes_on:
            self._convert(torch.float32)
            rows, drawn = self._with_earlier(rows, drawn)
        else:
            self.model_, self.guide_ = self._programs(config, rows)
            self._built = self._settings_built()
        checkpoint = self._checkpoint(config, rows, drawn, goes_on)
        rows = self._placed(rows)
        history = fit(config, self.model_, self.guide_, rows, drawn, self.progress, checkpoint)
        self.history_ = history.frame
        self._convert(torch.float64)
        self._set_threshold(self._score_encoded(self._to_score(x)), kept, weights)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Each row's log evidence, or what `criterion` names, ``(num_data,)``: nats, low = odd.

        It is computed in double precision where the programs are a `Model` and a `Guide`, so that a
        row's score is the same whatever rows are beside it.
        """
        return self._score_encoded(self._encoded(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """`score_samples` less `offset_`: negative for flagged rows, ``(num_data,)``."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any, fdr: float | None = None, ratio: float | None = None) -> np.ndarray:
        """-1 for odd rows and +1 for others, ``(num_data,)``, by `offset_` or in one of two ways.

        Args:
            fdr: the false-discovery rate to keep: the expected share of rows like the training rows
                among those flagged, by `p_values` and Benjamini and Hochberg's procedure.
            ratio: the share of these rows to flag, where it is known how many are anomalies.

        Raises:
            ValueError: both are given, one is out of range, or `fdr` has no calibration rows.

        Warns:
            UserWarning: `fdr` has too few calibration rows to flag any row, however odd.
        """
        if fdr is not None and ratio is not None:
            raise ValueError(f"give one of fdr and ratio, got fdr={fdr!r} and ratio={ratio!r}")
        if fdr is not None:
            flagged = conformal.discoveries(self.p_values(X), fdr)
            if (least := 1 / (1 + len(self.calibration_scores_))) > fdr:
                warnings.warn(
                    f"fdr={fdr!r} flags no row: with {len(self.calibration_scores_)} rows kept from"
                    f" training no p-value is below {least:.3g}; fit with a larger "
                    "calibration_share, or on more rows",
                    stacklevel=2,
                )
        elif ratio is not None:
            scores = self.score_samples(X)
            count = number_flagged(len(scores), ratio)
            flagged = np.isin(np.arange(len(scores)), np.argsort(scores, kind="stable")[:count])
        else:
            flagged = self.decision_function(X) < 0
        return np.where(flagged, -1, 1)

    def p_values(self, X: Any) -> np.ndarray:
        """Conformal p-values against the rows kept from training, low = odd, ``(num_data,)``.

        See `pyro_vaeflow.detector.conformal.p_values`. Calibration rows count alike, whatever their
        ``sample_weight``; anomalies among them make the p-values too large, never too small.

        Raises:
            ValueError: no rows were kept from training.
        """
        scores = self.score_samples(X)
        if not len(self.calibration_scores_):
            raise ValueError(
                f"p-values need rows kept from training, and calibration_share="
                f"{self.calibration_share!r} of the rows was none; fit with more, 0.2 say"
            )
        return conformal.p_values(scores, self.calibration_scores_)

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

    def score_details(self, X: Any) -> pd.DataFrame:
        """Each row's evidence with its standard error, ESS and k-hat: `Scores` as a frame, nats.

        A k-hat above 0.7 says that the log evidence is probably too low, as it often is for the
        oddest rows.
        """
        frame = self._scores(self._encoded(X)).to_frame()
        return frame.set_index(_index(X, len(frame)))

    def explain(self, X: Any, site: str = "x") -> pd.DataFrame:
        """What each column adds to a row's oddness, nats, in the table's own columns and index.

        See `contributions`; a missing entry adds 0.

        Args:
            site: the observed site, for programs of one's own.
        """
        x = self._encoded(X)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KhatWarning)
            nats = contributions(
                self.model_,
                self.guide_,
                x,
                num_samples=self.num_samples,
                seed=self.seed_,
                site=site,
            )
        # + 0.0: a missing entry's is -0.0
        return pd.DataFrame(
            nats.cpu().numpy() + 0.0, columns=self.encoder_.names_, index=_index(X, len(x))
        )

    def plot_scores(self, X: Any) -> Figure:
        """A histogram of the rows' anomaly scores, with the threshold."""
        return plot_scores(-self.score_samples(X), -self.offset_)

    def plot_contributions(self, X: Any, row: int = 0) -> Figure:
        """What the columns add to the oddness of one row, by its position in `X`, as bars."""
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
        self._check_built("set it back, or fit again; nothing was saved")
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

    def _check(self) -> None:
        """Refuses arguments of a wrong type or out of range."""
        self._validate_params()
        check_device(self.device)
        if (self.model is None) != (self.guide is None):
            raise ValueError("give model and guide together, or neither")
        if not self.hidden_dims:
            raise ValueError(f"hidden_dims must be at least one size, got {self.hidden_dims!r}")
        for place, width in enumerate(self.hidden_dims):
            check_size(f"hidden_dims[{place}]", width)

    def _settings_built(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in BUILT}
        return settings | {"hidden_dims": tuple(self.hidden_dims)}

    def _check_built(self, way_out: str) -> None:
        """Refuses settings that `set_params` has changed and the programs at hand do not have."""
        now = self._settings_built()
        for name, value in self._built.items():
            if now[name] != value:
                raise ValueError(
                    f"{name} was {value!r:.60} when the programs were made and is "
                    f"{now[name]!r:.60}: {way_out}"
                )

    def _config(self) -> ExperimentConfig:
        """The settings as those of an experiment: both train by one recipe."""
        return ExperimentConfig(
            preprocessing="mixed",
            likelihood="mixed",
            # Differences below 0.3 standard deviations count for little.
            likelihood_options={"min_scale": 0.3, "start_scale": 0.05},
            flow=self.flow,
            num_flows=self.num_flows,
            flow_options=FLOW_OPTIONS.get(self.flow, {}),
            latent_dim=self.latent_dim,
            prior=self.prior,
            start_scale=0.08,
            encoder_dims=tuple(self.hidden_dims),
            decoder_dims=tuple(self.hidden_dims),
            activation="tanh",
            dropout=0.0,
            num_steps=self.num_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            learning_rate_schedule="cosine",
            learning_rate_stop=self.learning_rate / COOLING,
            clip_norm=50.0,
            validation_share=self.validation_share,
            num_samples=self.num_samples,
            seed=self.seed_,
        )

    def _programs(self, config: ExperimentConfig, x: torch.Tensor) -> tuple[Program, Program]:
        if self.model is None or self.guide is None:
            return build(config, self.encoder_.columns_, x)
        # In one go: the two may share modules. A partial has parameters of its own in Pyro's store.
        pair = deepcopy((self.model, self.guide))
        return tuple(p if isinstance(p, torch.nn.Module) else partial(p) for p in pair)  # type: ignore[return-value]

    def _with_earlier(
        self, rows: torch.Tensor, weights: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows and the exemplars of an earlier `fit`: on new rows alone, the old are unlearned.

        The old ones weigh what the new ones weigh on average.
        """
        if not isinstance(prior := getattr(self.model_, "prior", None), ExemplarPrior):
            return rows, weights
        joined = torch.cat([rows, prior.rows.cpu()])
        order = torch.as_tensor(np.random.default_rng(self.seed_).permutation(len(joined)))
        if weights is not None:
            weights = torch.cat([weights, weights.mean().expand(len(prior.rows))])[order]
        return joined[order], weights

    def _checkpoint(
        self, config: ExperimentConfig, x: torch.Tensor, weights: torch.Tensor | None, goes_on: bool
    ) -> Path | None:
        """The folder of just this `fit`: folds, and settings in a search, share checkpoint_dir."""
        if self.checkpoint_dir is None:
            return None
        pair = (self.model_, self.guide_)
        start = named_digest(state_of(*pair)) if goes_on else None
        digest = tensor_digest([repr(config), *map(structure, pair), x, weights, start])
        return Path(self.checkpoint_dir) / f"fit-{digest[:16]}"

    def _kinds(self, frame: pd.DataFrame) -> Mapping[Any, str] | None:
        """Programs of one's own get numbers as numbers, whatever the training rows show."""
        if self.model is None:
            return self.kinds
        numeric = [name for name in frame.columns if is_numeric(frame[name])]
        return dict.fromkeys(numeric, "continuous") | dict(self.kinds or {})

    def _scores_in_double(self) -> bool:
        return isinstance(self.model_, Model) and isinstance(self.guide_, Guide)

    def _convert(self, dtype: torch.dtype) -> None:
        if self._scores_in_double():
            for module in modules(self.model_, self.guide_):
                module.to(dtype)

    def _set_threshold(
        self, scores: np.ndarray, kept: np.ndarray, weights: np.ndarray | None
    ) -> None:
        fresh = self.calibration_scores_ = np.sort(scores[kept])
        share = AUTO if self.contamination == "auto" else float(self.contamination)
        if self.contamination == "auto" and len(fresh):
            # Training rows are less odd to the programs than fresh ones, of n + 1 of which each is
            # as likely to be the oddest.
            offset = np.quantile(fresh, share, method="weibull")
        elif weights is not None:
            offset = np.quantile(scores, share, weights=weights, method="inverted_cdf")
        else:
            offset = np.quantile(scores, share)
        self.offset_ = float(offset)

    def _frame(self, X: Any, reset: bool) -> pd.DataFrame:
        """The rows as a frame of their own, with the columns of `fit` and rows from 0 on."""
        X = as_table(X)
        if isinstance(X, pd.DataFrame):
            try:
                validate_data(self, X, reset=reset, skip_check_array=True)
            except ValueError as error:
                if not hasattr(self, "feature_names_in_"):
                    raise
                raise ValueError(
                    f"{str(error).rstrip()} The columns of fit are in feature_names_in_: "
                    "X[detector.feature_names_in_] has them in order"
                ) from error
            frame = X.reset_index(drop=True)
        else:
            rows = 1 if reset else 0
            X = validate_data(
                self, X, reset=reset, dtype=None, ensure_all_finite=False, ensure_min_samples=rows
            )
            frame = pd.DataFrame(X).infer_objects()
        # By place: scikit-learn has compared the names.
        return frame if reset else frame.set_axis(self.encoder_.names_, axis=1)

    def _encoded(self, X: Any) -> torch.Tensor:
        check_is_fitted(self)
        return self._to_score(self.encoder_.transform(self._frame(X, reset=False)))

    def _to_score(self, x: torch.Tensor) -> torch.Tensor:
        return self._placed(x.double() if self._scores_in_double() else x)

    def _placed(self, x: torch.Tensor) -> torch.Tensor:
        """The rows where `device` says, and with them the programs."""
        device = check_device(self.device)
        move(self.model_, self.guide_, device)
        return x.to(device)

    def _scores(self, x: torch.Tensor) -> Scores:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KhatWarning)  # score_details has each row's k-hat
            warnings.simplefilter("ignore", NoScoreWarning)  # an error, below
            scores = score_rows(self._config(), self.model_, self.guide_, x, self.progress)
        if lost := scores.log_evidence.isnan().nonzero().squeeze(-1).tolist():
            raise ValueError(
                f"{len(lost)} of {len(x)} rows have no score, row {lost[0]} first: their log p(x) "
                "is NaN. Did training diverge (plot_history), or do model and guide take no missing"
                " entries, which are NaN?"
            )
        return scores

    def _score_encoded(self, x: torch.Tensor) -> np.ndarray:
        values = getattr(self._scores(x), CRITERIA[self.criterion])
        return values.cpu().numpy().astype(np.float64)


def _seed(random_state: int | np.random.RandomState | None) -> int:
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _index(X: Any, num_data: int) -> pd.Index:
    return X.index if isinstance(X, pd.DataFrame) else pd.RangeIndex(num_data)

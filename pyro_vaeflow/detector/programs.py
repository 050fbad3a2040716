"""The detector's pair of programs, made, trained on and scored with; and the rows it takes."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted, validate_data

from pyro_vaeflow.detector.rarity import MAX_ROWS, MAX_SCORED, Rarity
from pyro_vaeflow.inference.contributions import contributions
from pyro_vaeflow.inference.fingerprint import structure
from pyro_vaeflow.inference.noise import row_hash
from pyro_vaeflow.inference.parameters import Program, check_device, modules, move
from pyro_vaeflow.inference.saved_folder import named_digest, state_of, tensor_digest
from pyro_vaeflow.inference.scoring import KhatWarning, NoScoreWarning, Scores
from pyro_vaeflow.locks import ONE_THREAD
from pyro_vaeflow.programs.fitting import build, score_rows, unshared
from pyro_vaeflow.programs.priors import ExemplarPrior
from pyro_vaeflow.programs.settings import Settings
from pyro_vaeflow.programs.vae import Guide, Model
from pyro_vaeflow.tables.column_values import is_numeric
from pyro_vaeflow.tables.columns import LEFT_OUT
from pyro_vaeflow.tables.frames import as_table


class Programs:
    """What `VAEFlowDetector` does with its ``model_`` and ``guide_``."""

    _built: dict[str, Any]  # the settings that they were made with

    def _programs(self: Any, settings: Settings, x: torch.Tensor) -> tuple[Program, Program]:
        if self.model is None or self.guide is None:
            return build(settings, self.encoder_.columns_, x)
        return unshared(self.model, self.guide)

    def _with_earlier(
        self: Any, rows: torch.Tensor, weights: torch.Tensor | None
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
        self: Any, settings: Settings, x: torch.Tensor, weights: torch.Tensor | None, goes_on: bool
    ) -> Path | None:
        """The folder of just this `fit`: folds, and settings in a search, share checkpoint_dir."""
        if self.checkpoint_dir is None:
            return None
        pair = (self.model_, self.guide_)
        start = named_digest(state_of(*pair)) if goes_on else None
        digest = tensor_digest([repr(settings), *map(structure, pair), x, weights, start])
        return Path(self.checkpoint_dir) / f"fit-{digest[:16]}"

    def _kinds(self: Any, frame: pd.DataFrame) -> Mapping[Any, str] | None:
        """Programs of one's own get numbers as numbers, whatever the training rows show.

        So their rows have an entry for each column.
        """
        if self.model is None:
            return self.kinds
        kinds = {name: ("categorical", "continuous")[is_numeric(frame[name])] for name in frame}
        return kinds | dict(self.kinds or {})

    def _scores_in_double(self: Any) -> bool:
        return isinstance(self.model_, Model) and isinstance(self.guide_, Guide)

    def _convert(self: Any, dtype: torch.dtype) -> None:
        if self._scores_in_double():
            for module in modules(self.model_, self.guide_):
                module.to(dtype)

    def _placed(self: Any, x: torch.Tensor) -> torch.Tensor:
        """The rows where `device` says, and with them the programs."""
        device = check_device(self.device)
        move(self.model_, self.guide_, device)
        return x.to(device)

    def _encoded(self: Any, X: Any) -> torch.Tensor:
        """A user's rows as the programs score them, on their device."""
        check_is_fitted(self)
        with ONE_THREAD:  # pandas and scikit-learn set filters of warnings, which threads share
            x = self.encoder_.transform(table_of(self, X, reset=False))
        return self._to_score(x)

    def _to_score(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self._placed(x.double() if self._scores_in_double() else x)

    def _contributions(self: Any, x: torch.Tensor, site: str = "x") -> pd.DataFrame:
        """What each of the user's columns adds to the anomaly scores of encoded rows, nats."""
        options: dict[str, Any] = {"num_samples": self.num_samples, "seed": self.seed_}
        with ONE_THREAD, warnings.catch_warnings():
            warnings.simplefilter("ignore", KhatWarning)
            nats = contributions(self.model_, self.guide_, x, site=site, **options)
        return self.encoder_.sums(nats.cpu().numpy() + 0.0)  # a missing entry's is -0.0

    def _scores(self: Any, x: torch.Tensor, **options: Any) -> Scores:
        settings = self._for_fitting(self.seed_)
        with ONE_THREAD, warnings.catch_warnings():
            warnings.simplefilter("ignore", KhatWarning)  # score_details has each row's k-hat
            warnings.simplefilter("ignore", NoScoreWarning)  # an error, below
            scores = score_rows(settings, self.model_, self.guide_, x, self.progress, **options)
        if lost := scores.log_evidence.isnan().nonzero().squeeze(-1).tolist():
            raise ValueError(
                f"{len(lost)} of {len(x)} rows have no score, row {lost[0]} first: their log p(x) "
                "is NaN. Did training diverge (plot_history), or do model and guide take no missing"
                " entries, which are NaN?"
            )
        return scores

    def _learn_rarity(self: Any, rows: torch.Tensor) -> None:
        """What the criterion ``combined`` compares with: some of the training rows."""
        self.rarity_, self._fitted_for = None, self.criterion
        if self.criterion != "combined":
            return
        rows, hashes = self._to_score(rows[:MAX_ROWS]), row_hash(rows)
        evidence = self._scores(rows[:MAX_SCORED]).log_evidence.cpu().numpy()
        self.rarity_ = Rarity(self.encoder_.columns_, rows, evidence, hashes)

    def _check_criterion(self: Any) -> None:
        """Refuses a criterion that `set_params` has changed: the threshold is another's."""
        if self.criterion != self._fitted_for:
            raise ValueError(
                f"criterion was {self._fitted_for!r} in fit and is {self.criterion!r}: set it "
                "back, or fit anew; score_details has log_evidence and expected_log_likelihood"
            )


def table_of(detector: Any, X: Any, reset: bool) -> pd.DataFrame:
    """The rows as a frame of their own, with the columns of `fit` and rows from 0 on.

    Args:
        detector: an estimator, whose columns these must be.
        reset: whether they become its columns.
    """
    X = as_table(X)
    if isinstance(X, pd.DataFrame):
        X = X if reset else _with_unused(detector, X)
        try:
            validate_data(detector, X, reset=reset, skip_check_array=True)
        except ValueError as error:
            if not hasattr(detector, "feature_names_in_"):
                raise
            raise ValueError(
                f"{str(error).rstrip()} The columns of fit are in feature_names_in_: "
                "X[detector.feature_names_in_] has them in order"
            ) from error
        names = list(X.columns if reset else detector.encoder_.names_)
        if list(X.columns) != names and not all(isinstance(name, str) for name in X.columns):
            raise ValueError(  # scikit-learn compares no names that are numbers or tuples
                f"X has the columns {list(X.columns)[:9]}, and fit had {names[:9]}; X[names] has "
                "them in that order"
            )
        frame = X.reset_index(drop=True)
    else:
        options: dict[str, Any] = {"dtype": None, "ensure_all_finite": False}
        X = validate_data(detector, X, reset=reset, ensure_min_samples=int(reset), **options)
        frame = pd.DataFrame(X).infer_objects()
    # By place: scikit-learn has compared the names.
    return frame if reset else frame.set_axis(detector.encoder_.names_, axis=1)


def _with_unused(detector: Any, X: pd.DataFrame) -> pd.DataFrame:
    """The table with a gap for each column that is no feature and that it lacks."""
    unused = {column.name for column in detector.encoder_.readings_ if column.kind == LEFT_OUT}
    for place, name in enumerate(getattr(detector, "feature_names_in_", ())):
        if name in unused and name not in X:
            X = X.copy(deep=False)
            X.insert(min(place, X.shape[1]), name, np.nan)
    return X

"""The detector's pair of programs: made, moved, converted, and trained on from where they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.inference.checkpoint import state_of
from pyro_vaeflow.inference.devices import check_device, move
from pyro_vaeflow.inference.fingerprint import named_digest, structure, tensor_digest
from pyro_vaeflow.inference.parameters import Program, modules
from pyro_vaeflow.programs.fitting import build, unshared
from pyro_vaeflow.programs.priors import ExemplarPrior
from pyro_vaeflow.programs.settings import Settings
from pyro_vaeflow.programs.vae import Guide, Model
from pyro_vaeflow.tables.column_values import is_numeric


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

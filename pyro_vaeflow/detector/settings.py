"""The detector's settings: the arguments of its constructor and their ranges, checked in `fit`."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from pyro_vaeflow.inference.parameters import Device, Program, check_device
from pyro_vaeflow.programs.settings import Settings
from pyro_vaeflow.validation import ConfigError, checked_values, setting

# Criterion -> the log probability of a row, in nats, that its score is made of.
CRITERIA = {
    "combined": "log_evidence",  # beside nearest row and rarest entry: `Rarity`
    "importance": "log_evidence",
    "reconstruction": "expected_log_likelihood",
}
COOLING = 60.0  # the learning rate at the start over that at the end
# What programs are made of: a warm start and a saved file know them by these.
BUILT = ("flow", "num_flows", "latent_dim", "hidden_dims", "prior", "model", "guide")


@dataclass(eq=False, repr=False)
class DetectorSettings:
    """What `VAEFlowDetector` says of its arguments; the constructor only stores them."""

    flow: str = "diagonal"
    num_flows: int | None = setting(None, low=0, high=100)
    latent_dim: int | None = setting(None, low=1)
    hidden_dims: tuple[int, ...] = setting((64, 64), low=1)
    num_steps: int = setting(500, low=1)
    batch_size: int = setting(128, low=1)
    learning_rate: float = setting(0.006, above=0.0, below=1e6)
    num_samples: int = setting(50, low=2, high=1_000_000)
    criterion: str = setting("combined", choices=tuple(CRITERIA))
    contamination: float | str = setting("auto", above=0.0, high=0.5, choices=("auto",))
    kinds: Mapping[Any, str] | None = None
    groups: str | None = None
    prior: str = setting("exemplar", choices=("exemplar", "normal"))
    calibration_share: float = setting(0.1, low=0.0, below=1.0)
    validation_share: float = setting(0.15, low=0.0, below=1.0)
    random_state: int | np.random.RandomState | None = None
    warm_start: bool = False
    progress: bool = False
    checkpoint_dir: str | Path | None = None
    device: Device = "cpu"
    model: Program | None = None
    guide: Program | None = None

    def _check(self) -> None:
        """Refuses arguments of a wrong type or out of range, with what is allowed."""
        checked_values(self)
        check_device(self.device)
        if (self.model is None) != (self.guide is None):
            raise ConfigError("give model and guide together, or neither")

    def _for_fitting(self, seed: int) -> Settings:
        """The settings of the pair and of its training: a detector is fitted as studies are."""
        return Settings(
            likelihood="mixed",
            # Differences below 0.3 standard deviations count for little.
            likelihood_options={"min_scale": 0.3, "start_scale": 0.05},
            flow=self.flow,
            num_flows=self.num_flows,
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
            seed=seed,
        )

    def _seed(self) -> int:
        """The seed that random_state is, or gives."""
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _settings_built(self) -> dict[str, Any]:
        settings = {name: getattr(self, name) for name in BUILT}
        return settings | {"hidden_dims": tuple(self.hidden_dims)}

    def _check_built(self, built: Mapping[str, Any], way_out: str) -> None:
        """Refuses settings that `set_params` has changed and the programs at hand do not have."""
        now = self._settings_built()
        for name, value in built.items():
            if now[name] != value:
                raise ValueError(
                    f"{name} was {value!r:.60} when the programs were made and is "
                    f"{now[name]!r:.60}: {way_out}"
                )

"""The settings of a pair of programs and of their training: frozen, checked by name, without torch.

Names that a registry owns (posteriors, likelihoods, activations) are checked against the registry
when a pair is built, so that registering one function is all that a new one needs.
"""

import math
from dataclasses import dataclass
from typing import Any

from pyro_vaeflow.programs.depths import depth
from pyro_vaeflow.validation import Checked, ConfigError, check_used, setting

# Choice -> its value -> settings that would then do nothing: they are refused.
IGNORED: dict[str, dict[str, tuple[str, ...]]] = {
    "kind": {
        "constant": ("start", "num_cycles", "ratio", "gamma"),
        "linear": ("num_cycles", "gamma"),
        "cyclical": ("gamma",),
        "capacity": ("num_cycles",),
    },
    "learning_rate_schedule": {"constant": ("learning_rate_stop",)},
}


@dataclass(frozen=True)
class AnnealingConfig(Checked):
    """How the Kullback-Leibler term is weighted, step by step.

    Args:
        kind: constant, linear or cyclical beta; or capacity, the loss ``gamma |KL - C|``.
        start: beta (or the capacity, nats per row) at the start.
        stop: beta (or the capacity, nats per row) at the end; the only value of constant.
        num_cycles: cycles of cyclical.
        ratio: the part of a cycle (cyclical) or of the run (linear, capacity) that rises.
        gamma: stiffness of capacity.
    """

    kind: str = setting("constant", choices=("constant", "linear", "cyclical", "capacity"))
    start: float = setting(0.0, low=0.0)
    stop: float = setting(1.0, low=0.0)
    num_cycles: int = setting(4, low=1)
    ratio: float = setting(0.5, above=0.0, high=1.0)
    gamma: float = setting(1000.0, low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_used(self, "kind", IGNORED["kind"])


@dataclass(frozen=True)
class PairSettings(Checked):
    """What a model and a guide are built of.

    Args:
        likelihood: a name in `pyro_vaeflow.programs.likelihoods.LIKELIHOODS`.
        likelihood_options: options of the likelihood head, such as min_scale of normal.
        flow: the posterior's family, a name in `pyro_vaeflow.programs.flows.FLOWS`.
        num_flows: transforms in the posterior; null for what suits it: 0 for diagonal, 1 for
            full, 4 for coupling, 10 for planar, 5 for iaf, 2 for spline.
        conditioned: whether the flow reads the encoder's context.
        flow_options: options of the posterior's builder, such as hidden_dim of iaf.
        latent_dim: dimensions of z; null for one per feature, up to 64.
        prior: of z, normal or exemplar: `pyro_vaeflow.programs.priors.ExemplarPrior` of the
            training rows.
        encoder_dims: widths of the encoder's hidden layers.
        decoder_dims: widths of the decoder's hidden layers.
        activation: of both networks' hidden layers, in `pyro_vaeflow.programs.vae.ACTIVATIONS`.
        dropout: probability, in both networks, in training only.
        input_dropout: of mixed tables, the share of entries hidden from the encoder in training.
        start_scale: of the posterior's base in an untrained guide.
    """

    likelihood: str = "bernoulli"
    likelihood_options: dict[str, Any] = setting(factory=dict)
    flow: str = "diagonal"
    num_flows: int | None = setting(None, low=0, high=100)
    conditioned: bool = True
    flow_options: dict[str, Any] = setting(factory=dict)
    latent_dim: int | None = setting(12, low=1)
    prior: str = setting("normal", choices=("normal", "exemplar"))
    encoder_dims: tuple[int, ...] = setting((128, 64), low=1)
    decoder_dims: tuple[int, ...] = setting((64, 128), low=1)
    activation: str = "leaky_relu"
    dropout: float = setting(0.2, low=0.0, below=1.0)
    input_dropout: float = setting(0.0, low=0.0, below=1.0)
    start_scale: float = setting(math.log(2.0), above=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_flows", depth(self.flow, self.num_flows))


@dataclass(frozen=True)
class TrainingSettings(Checked):
    """How a pair is trained and scored.

    Args:
        num_steps: mini-batches of training; or give num_epochs.
        num_epochs: passes over the training rows; or give num_steps.
        batch_size: rows in a mini-batch.
        count_power: mini-batches are drawn from the distinct training rows in proportion to the
            number of their copies to this power: 1 is as they are, 0 each distinct row alike.
        learning_rate: of Adam, at the start.
        learning_rate_warmup: the share of the steps in which it first rises from 0.
        learning_rate_schedule: constant, linear or cosine.
        learning_rate_stop: the last learning rate, of linear and cosine.
        annealing: the weight of the Kullback-Leibler term.
        clip_norm: the largest gradient norm; none by default.
        validation_share: of the training rows, at most 500, whose ELBO chooses the step whose
            parameters are kept.
        num_samples: samples of z for each row's scores.
        seed: of initial parameters, mini-batches, training and scoring noise; 0 is a seed.
    """

    num_steps: int | None = setting(None, low=1)
    num_epochs: float | None = setting(None, above=0.0)
    batch_size: int = setting(256, low=1)
    count_power: float = setting(1.0, low=0.0, high=1.0)
    learning_rate: float = setting(1e-3, above=0.0)
    learning_rate_warmup: float = setting(0.0, low=0.0, below=1.0)
    learning_rate_schedule: str = setting("constant", choices=("constant", "linear", "cosine"))
    learning_rate_stop: float = setting(0.0, low=0.0)
    annealing: AnnealingConfig = setting(factory=AnnealingConfig)
    clip_norm: float | None = setting(None, above=0.0)
    validation_share: float = setting(0.0, low=0.0, below=1.0)
    num_samples: int = setting(100, low=2)
    seed: int = setting(0, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.num_steps is None) == (self.num_epochs is None):
            got = f"num_steps={self.num_steps!r} and num_epochs={self.num_epochs!r}"
            raise ConfigError(f"give one of num_steps and num_epochs, got {got}")
        check_used(self, "learning_rate_schedule", IGNORED["learning_rate_schedule"])


@dataclass(frozen=True)
class Settings(TrainingSettings, PairSettings):
    """All that `pyro_vaeflow.programs.fitting` reads: the pair's settings and its training's."""

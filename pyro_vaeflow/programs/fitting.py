"""From a configuration to what it names: programs, schedules, loss and a training run."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from pyro.infer import ELBO, Trace_ELBO

from pyro_vaeflow.experiments.config import VAEFLOW, AnnealingConfig, ExperimentConfig
from pyro_vaeflow.experiments.peers import PEERS
from pyro_vaeflow.experiments.tasks import check_task
from pyro_vaeflow.inference.annealing import (
    CapacityELBO,
    Schedule,
    constant,
    cosine,
    cyclical,
    linear,
    warmup,
)
from pyro_vaeflow.inference.parameters import Program, seeded
from pyro_vaeflow.inference.row_scores import Scores
from pyro_vaeflow.inference.scoring import score
from pyro_vaeflow.inference.training import History, train
from pyro_vaeflow.programs.flows import FLOWS
from pyro_vaeflow.programs.likelihoods import LIKELIHOODS
from pyro_vaeflow.programs.mixed import MixedHead
from pyro_vaeflow.programs.priors import ExemplarPrior
from pyro_vaeflow.programs.vae import ACTIVATIONS, Guide, Model, Row
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.tables.distinct_rows import distinct_rows
from pyro_vaeflow.validation import ConfigError, check_names

MAX_LATENT = 64
MAX_VALIDATION = 500  # rows
NUM_VALIDATIONS = 30  # a run
TWO_COLUMNS = [Column("a", "continuous"), Column("b", "continuous")]


def check_registered(config: ExperimentConfig) -> None:
    """Refuses names and options that no registry knows, before anything is loaded.

    Raises:
        ConfigError: with the names allowed, or with what the posterior's builder said.
    """
    check_task(config)
    check_names([config.detector], [VAEFLOW, *PEERS], "detector")
    if config.is_peer:
        _check_options(config.detector, config.detector_options, PEERS[config.detector], given=1)
        return
    check_names([config.likelihood], LIKELIHOODS, "likelihood")
    check_names([config.flow], FLOWS, "flow")
    check_names([config.activation], ACTIVATIONS, "activation")
    head, flow = LIKELIHOODS[config.likelihood], FLOWS[config.flow]
    _check_options(config.likelihood, config.likelihood_options, head, given=2)
    _check_options(config.flow, config.flow_options, flow, given=3)
    try:
        build(config, TWO_COLUMNS if head is MixedHead else 2)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{config.flow} with {config.num_flows} flows: {error}") from error


def _check_options(name: str, options: dict[str, Any], builder: Any, given: int) -> None:
    """Options are the builder's arguments after those that the model or guide fills in."""
    allowed = list(inspect.signature(builder).parameters)[given:]
    check_names(options, allowed or ["none"], f"option of {name}")


def build(
    config: ExperimentConfig, num_features: Row, rows: torch.Tensor | None = None
) -> tuple[Model, Guide]:
    """The model and the guide of a configuration; initial parameters depend on its seed alone.

    Args:
        num_features: what the model and the guide are told of the rows.
        rows: training rows, for a prior that is made of them.
    """
    latent_dim = config.latent_dim
    if latent_dim is None:
        count = num_features if isinstance(num_features, int) else len(num_features)
        latent_dim = min(count, MAX_LATENT)
    with seeded(config.seed):
        model = Model(
            num_features,
            latent_dim=latent_dim,
            hidden_dims=config.decoder_dims,
            likelihood=config.likelihood,
            dropout=config.dropout,
            activation=config.activation,
            likelihood_options=config.likelihood_options,
        )
        guide = Guide(
            num_features,
            latent_dim=latent_dim,
            hidden_dims=config.encoder_dims,
            flow=config.flow,
            num_flows=config.num_flows,
            conditioned=config.conditioned,
            dropout=config.dropout,
            input_dropout=config.input_dropout,
            start_scale=config.start_scale,
            activation=config.activation,
            flow_options=config.flow_options,
        )
        if config.prior == "exemplar" and rows is not None:
            model.prior = ExemplarPrior(rows, guide.locate, latent_dim)
    return model, guide


def fit(
    config: ExperimentConfig,
    model: Program,
    guide: Program,
    x: torch.Tensor,
    weights: torch.Tensor | None,
    progress: bool,
    checkpoint: Path | None = None,
) -> History:
    """Trains `model` and `guide` in place as the configuration says; see `train` for the rest."""
    prior = getattr(model, "prior", None)
    num_validation = min(MAX_VALIDATION, round(config.validation_share * len(x)))
    validation, x_all = x[:num_validation], x
    x, weights = x[num_validation:], None if weights is None else weights[num_validation:]
    if isinstance(prior, ExemplarPrior):
        with seeded(config.seed):
            prior.remember(x)
    num_steps = config.num_steps
    if num_steps is None:  # then a configuration has num_epochs
        passes = cast(float, config.num_epochs)
        num_steps = max(1, round(passes * len(x) / config.batch_size))
    schedule, loss = annealing(config.annealing, num_steps)
    history = train(
        model,
        guide,
        x,
        num_steps=num_steps,
        batch_size=config.batch_size,
        learning_rate=_learning_rate(config, num_steps),
        schedule=schedule,
        loss=loss,
        clip_norm=config.clip_norm,
        weights=weights,
        held_out=validation if num_validation else None,
        eval_every=max(1, num_steps // NUM_VALIDATIONS),
        seed=config.seed,
        progress=progress,
        checkpoint=checkpoint,
    )
    if isinstance(prior, ExemplarPrior):
        with seeded(config.seed):
            prior.remember(x_all)
    return history


def score_rows(
    config: ExperimentConfig, model: Program, guide: Program, x: torch.Tensor, progress: bool
) -> Scores:
    """The scores of the rows `x`, with the configuration's draws and seed."""
    # Copies of a row have one score: it depends on the row's content and the seed alone.
    distinct, place, _ = distinct_rows(x)
    draws = {"num_samples": config.num_samples, "seed": config.seed}
    scores = score(model, guide, distinct, **draws, progress=progress)  # type: ignore[arg-type]
    return Scores(**{f.name: getattr(scores, f.name)[place] for f in fields(Scores)})


def annealing(config: AnnealingConfig, num_steps: int) -> tuple[Schedule, ELBO]:
    """The schedule of beta, or of the capacity in nats a row, and the loss that reads it.

    Example:
        >>> schedule, loss = annealing(AnnealingConfig(kind="linear", stop=2.0, ratio=0.5), 100)
        >>> schedule(0), schedule(25), schedule(100)
        (0.0, 1.0, 2.0)
    """
    rise = max(1, round(config.ratio * num_steps))
    if config.kind == "capacity":
        return linear(rise, config.start, config.stop), CapacityELBO(gamma=config.gamma)
    if config.kind == "cyclical":
        cycles = min(config.num_cycles, num_steps)
        cyclic = cyclical(num_steps, cycles, config.ratio, config.start, config.stop)
        return cyclic, Trace_ELBO()
    if config.kind == "linear":
        return linear(rise, config.start, config.stop), Trace_ELBO()
    return constant(config.stop), Trace_ELBO()


def _learning_rate(config: ExperimentConfig, num_steps: int) -> Schedule:
    start, stop = config.learning_rate, config.learning_rate_stop
    rise = min(round(config.learning_rate_warmup * num_steps), num_steps - 1)
    falls = {"linear": linear, "cosine": cosine}
    fall = falls.get(config.learning_rate_schedule)
    return warmup(rise, fall(num_steps - rise, start, stop) if fall else constant(start))

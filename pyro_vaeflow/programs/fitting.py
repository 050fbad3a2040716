"""From settings to what they name: a pair of programs, its schedules, a training, scores."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from pyro.infer import ELBO, Trace_ELBO

from pyro_vaeflow.inference.annealing import (
    CapacityELBO,
    Schedule,
    constant,
    cosine,
    cyclical,
    linear,
    warmup,
)
from pyro_vaeflow.inference.parameters import Program, param_scope, seeded
from pyro_vaeflow.inference.saved_folder import CheckpointError, check_fits, state_of
from pyro_vaeflow.inference.scoring import Scores, score
from pyro_vaeflow.inference.training import History, train
from pyro_vaeflow.programs.flows import FLOWS
from pyro_vaeflow.programs.likelihoods import LIKELIHOODS
from pyro_vaeflow.programs.mixed import MixedHead
from pyro_vaeflow.programs.priors import ExemplarPrior
from pyro_vaeflow.programs.settings import AnnealingConfig, PairSettings, Settings, TrainingSettings
from pyro_vaeflow.programs.vae import ACTIVATIONS, Guide, Model, Row
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.tables.distinct_rows import distinct_rows
from pyro_vaeflow.validation import ConfigError, check_names

MAX_LATENT = 64
MAX_VALIDATION = 500  # rows
NUM_VALIDATIONS = 30  # in a long training; in a short one,
BETWEEN = 50  # steps from one to the next
TWO_COLUMNS = [Column("a", "continuous"), Column("b", "continuous")]
Pair = tuple[Program, Program]
# From settings, what programs are told of the rows, and training rows, to a pair.
Make = Callable[[Settings, Row, torch.Tensor | None], Pair]


def vae(settings: PairSettings, num_features: Row, x: torch.Tensor | None) -> tuple[Model, Guide]:
    """`Model` and `Guide`; an exemplar prior holds the rows `x`."""
    latent_dim = settings.latent_dim
    if latent_dim is None:
        count = num_features if isinstance(num_features, int) else len(num_features)
        latent_dim = min(count, MAX_LATENT)
    shared: dict[str, Any] = {"latent_dim": latent_dim, "dropout": settings.dropout}
    shared["activation"] = settings.activation
    model = Model(
        num_features,
        hidden_dims=settings.decoder_dims,
        likelihood=settings.likelihood,
        likelihood_options=settings.likelihood_options,
        **shared,
    )
    guide = Guide(
        num_features,
        hidden_dims=settings.encoder_dims,
        flow=settings.flow,
        num_flows=settings.num_flows,
        conditioned=settings.conditioned,
        input_dropout=settings.input_dropout,
        start_scale=settings.start_scale,
        flow_options=settings.flow_options,
        **shared,
    )
    if settings.prior == "exemplar" and x is not None:
        model.prior = ExemplarPrior(x, guide.locate, latent_dim)
    return model, guide


# What ``programs`` of a study names.
PROGRAMS: dict[str, Make] = {"vae": vae}


def build(
    settings: Settings, num_features: Row, x: torch.Tensor | None = None, make: Make = vae
) -> Pair:
    """The pair that `make` gives; initial parameters depend on the settings' seed alone.

    Args:
        num_features: what the programs are told of the rows.
        x: training rows, for a prior that is made of them.

    Raises:
        ConfigError: `make` does not return two programs.
    """
    with seeded(settings.seed):
        pair = make(settings, num_features, x)
    if not (isinstance(pair, Sequence) and len(pair) == 2 and all(map(callable, pair))):
        raise ConfigError(
            f"programs: {getattr(make, '__name__', make)} must return (model, guide), two Pyro "
            f"programs, got {pair!r:.80}"
        )
    return pair if make is vae else unshared(*pair)


def check_build(
    settings: Settings,
    num_features: Row,
    x: torch.Tensor | None,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Compares what `vae` would make, without taking its memory, with the tensors of a file.

    The layers of a flow are left out, as some are made with numbers that only real tensors have:
    their sizes are those of latent_dim and of options.

    Raises:
        CheckpointError: they differ, or settings are of larger programs.
    """
    if (depth := max(map(len, (settings.encoder_dims, settings.decoder_dims)))) > len(tensors):
        raise CheckpointError(  # modules take memory even without tensors
            f"hidden_dims of {depth} layers do not fit a file of {len(tensors)} tensors"
        )
    plain = replace(settings, flow="diagonal", num_flows=0, flow_options={})
    with torch.device("meta"):
        model, guide = vae(plain, num_features, None if x is None else x.to("meta"))
    size = model.latent_dim * max(1, settings.num_flows or 0)  # at least
    if settings.flow in ("iaf", "spline"):
        options = (settings.flow_options.get(name) for name in ("hidden_dim", "count_bins"))
        size *= max(model.latent_dim, *(option or 1 for option in options))
    if size > (total := sum(value.numel() for value in tensors.values())):
        raise CheckpointError(
            f"latent_dim={model.latent_dim} with {settings.num_flows} layers of {settings.flow} "
            f"does not fit a file of {total} values"
        )
    expected = state_of(model.to(dtype), guide.to(dtype))
    check_fits(expected, {name: value for name, value in tensors.items() if name in expected})


def unshared(model: Program, guide: Program) -> Pair:
    """Copies of the modules, and functions with parameters of their own, that training may change.

    The copies share what the programs share.
    """
    pair = deepcopy((model, guide))  # in one go, for what they share
    first, second = (p if isinstance(p, torch.nn.Module) else partial(p) for p in pair)
    return first, second


def check_pair(settings: Settings) -> None:
    """Refuses names and options that no registry knows, before anything is loaded.

    Raises:
        ConfigError: with the names allowed, or with what the posterior's builder said.
    """
    check_names([settings.likelihood], LIKELIHOODS, "likelihood")
    check_names([settings.flow], FLOWS, "flow")
    check_names([settings.activation], ACTIVATIONS, "activation")
    head, flow = LIKELIHOODS[settings.likelihood], FLOWS[settings.flow]
    _check_options(settings.likelihood, settings.likelihood_options, head, given=2)
    _check_options(settings.flow, settings.flow_options, flow, given=3)
    try:
        build(settings, TWO_COLUMNS if head is MixedHead else 2)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{settings.flow} with {settings.num_flows} flows: {error}") from error


def _check_options(name: str, options: Mapping[str, Any], builder: Any, given: int) -> None:
    """Options are the builder's arguments after those that the model or guide fills in."""
    allowed = list(inspect.signature(builder).parameters)[given:]
    check_names(options, allowed or ["none"], f"option of {name}")


def fit(
    settings: TrainingSettings,
    model: Program,
    guide: Program,
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    progress: bool = False,
    checkpoint: Path | None = None,
) -> History:
    """Trains `model` and `guide` in place as the settings say; see `train` for the rest.

    Args:
        x: training rows, ``(num_data, num_features)``; the first validation_share of them choose
            the step that is kept.
        weights: how often each row is drawn, ``(num_data,)``.
    """
    prior = getattr(model, "prior", None)
    num_validation = min(MAX_VALIDATION, round(settings.validation_share * len(x)))
    validation, x_all = x[:num_validation], x
    x, weights = x[num_validation:], None if weights is None else weights[num_validation:]
    if isinstance(prior, ExemplarPrior):
        with seeded(settings.seed):
            prior.remember(x)
    num_steps = settings.num_steps
    if num_steps is None:  # then there is num_epochs
        num_steps = max(1, round(cast(float, settings.num_epochs) * len(x) / settings.batch_size))
    schedule, loss = annealing(settings.annealing, num_steps)
    with param_scope(model, guide):  # not a pair to be used with Pyro's tools: nothing is shown
        history = train(
            model,
            guide,
            x,
            num_steps=num_steps,
            batch_size=settings.batch_size,
            learning_rate=learning_rate(settings, num_steps),
            schedule=schedule,
            loss=loss,
            clip_norm=settings.clip_norm,
            weights=weights,
            held_out=validation if num_validation else None,
            eval_every=max(1, num_steps // NUM_VALIDATIONS, min(num_steps // 3, BETWEEN)),
            seed=settings.seed,
            progress=progress,
            checkpoint=checkpoint,
        )
    if isinstance(prior, ExemplarPrior):
        with seeded(settings.seed):
            prior.remember(x_all)
    return history


def score_rows(
    settings: TrainingSettings,
    model: Program,
    guide: Program,
    x: torch.Tensor,
    progress: bool = False,
    **options: Any,
) -> Scores:
    """The scores of rows `x` ``(num_data, num_features)``, by the settings' samples and seed."""
    # Copies of a row have one score: it depends on the row's content and the seed alone.
    distinct, index, _ = distinct_rows(x)
    options |= {"num_samples": settings.num_samples, "seed": settings.seed, "progress": progress}
    scores = score(model, guide, distinct, **options)
    return Scores(**{f.name: getattr(scores, f.name)[index] for f in fields(Scores)})


def annealing(config: AnnealingConfig, num_steps: int) -> tuple[Schedule, ELBO]:
    """The schedule of beta, or of the capacity in nats per row, and the loss that reads it.

    Example:
        >>> schedule, loss = annealing(AnnealingConfig(kind="linear", stop=2.0, ratio=0.5), 100)
        >>> schedule(0), schedule(25), schedule(100)
        (0.0, 1.0, 2.0)
    """
    rise = max(1, round(config.ratio * num_steps))
    if config.kind == "constant":
        return constant(config.stop), Trace_ELBO()
    if config.kind == "cyclical":
        cycles = min(config.num_cycles, num_steps)
        cyclic = cyclical(num_steps, cycles, config.ratio, config.start, config.stop)
        return cyclic, Trace_ELBO()
    loss = CapacityELBO(gamma=config.gamma) if config.kind == "capacity" else Trace_ELBO()
    return linear(rise, config.start, config.stop), loss


def learning_rate(settings: TrainingSettings, num_steps: int) -> Schedule:
    """The schedule of the learning rate: it rises in its warm-up, then stays or falls."""
    start, stop = settings.learning_rate, settings.learning_rate_stop
    rise = min(round(settings.learning_rate_warmup * num_steps), num_steps - 1)
    falls = {"linear": linear, "cosine": cosine}
    fall = falls.get(settings.learning_rate_schedule)
    return warmup(rise, fall(num_steps - rise, start, stop) if fall else constant(start))

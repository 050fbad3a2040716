"""Paired traces of a model and its guide, and their log probabilities row by row."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_vaeflow.inference.parameters import Program, UnseenParams, without_names

Args = tuple[Any, ...]

_DRAWS = ("num_samples", "num_particles_vectorized")  # plates of draws: ours, and Pyro's losses'


@dataclass(frozen=True)
class RowTerms:
    """Un-annealed log probabilities, nats, each ``(num_data,)`` or ``(num_samples, num_data)``.

    Masks of the programs hold; their scales, annealing among them, do not.
    """

    log_likelihood: torch.Tensor
    """log p(x | z): the observed sites."""
    log_prior: torch.Tensor
    """log p(z): the model's unobserved sites."""
    log_guide: torch.Tensor
    """log q(z | x)."""

    @property
    def kl(self) -> torch.Tensor:
        """log q(z | x) - log p(z): an unbiased draw of the KL divergence, nats."""
        return self.log_guide - self.log_prior

    @property
    def log_weight(self) -> torch.Tensor:
        """log p(x, z) - log q(z | x), nats."""
        return self.log_likelihood - self.kl


def as_args(x: Any) -> Args:
    """The programs' arguments: `x` alone, or the tuple that a program of several arguments takes.

    Raises:
        TypeError: the rows are not a tensor.
    """
    args = x if isinstance(x, tuple) else (x,)
    if not args or not isinstance(args[0], torch.Tensor) or args[0].dim() == 0:
        got = type(args[0]).__name__ if args else "an empty tuple"
        raise TypeError(
            f"x must be a tensor (num_data, ...) or a tuple that starts with one, got {got}; "
            "torch.as_tensor makes one"
        )
    if args[0].layout != torch.strided or args[0].is_meta:
        raise TypeError(
            f"x must be a dense tensor with data, got {args[0].layout} on {args[0].device}; "
            "x.to_dense() makes one"
        )
    return args[0].detach(), *args[1:]  # no gradient is left on the caller's rows


def take_rows(args: Args, rows: torch.Tensor | slice) -> Args:
    """The arguments for these rows: each tensor with as many rows as the first is cut alike.

    `rows` is a slice, or numbers of rows from 0, one dimension of them.
    """
    num_data = len(args[0])

    def take(arg: Any) -> Any:
        if not (isinstance(arg, torch.Tensor) and arg.dim() > 0 and len(arg) == num_data):
            return arg
        # Copies, as programs may work in place; this takes a quarter of the time of indexing.
        return arg[rows].clone() if isinstance(rows, slice) else arg.index_select(0, rows)

    return tuple(take(arg) for arg in args)


def paired_traces(
    model: Program,
    guide: Program,
    args: Args,
    *,
    num_samples: int,
    max_plate_nesting: int,
    noise: Messenger | None = None,
) -> tuple[Trace, Trace]:
    """One trace of the guide with `num_samples` draws at once, and the model replayed on it.

    `noise` handles the guide's sample statements, around the plate of draws.
    """
    inner, outer = (with_draws(p, num_samples, max_plate_nesting) for p in (model, guide))
    noisy_guide = outer if noise is None else noise(outer)
    return get_importance_trace("flat", max_plate_nesting + 1, inner, noisy_guide, args, {})


def with_draws(program: Program, num_samples: int, max_plate_nesting: int) -> Program:
    """The program inside a plate of draws, to the left of its own plates."""
    program, quiet = without_names(program), UnseenParams()

    def program_with_draws(*args: Any) -> None:
        with pyro.plate("num_samples", num_samples, dim=-max_plate_nesting - 1), quiet:
            program(*args)

    return program_with_draws


def run_once(model: Program, guide: Program, args: Args) -> tuple[Trace, Trace]:
    """Traces of model and guide as they are, without a plate of draws."""
    guide_trace = poutine.trace(guide).get_trace(*args)
    return poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args), guide_trace


def row_terms(model_trace: Trace, guide_trace: Trace, plate: str = "data") -> RowTerms:
    """Sums the log probabilities of a pair of traces to rows, and draws if they have such a plate.

    Sites outside the plate are left out: training reports what it can of a shared latent.
    """
    zero = torch.zeros(())
    log_likelihood, log_prior, log_guide = zero, zero, zero
    for site in sample_sites(model_trace):
        if site["is_observed"]:
            log_likelihood = log_likelihood + _per_row(site, plate)
        else:
            log_prior = log_prior + _per_row(site, plate)
    for site in sample_sites(guide_trace):
        log_guide = log_guide + _per_row(site, plate)
    return RowTerms(*torch.broadcast_tensors(log_likelihood, log_prior, log_guide))


def sample_sites(trace: Trace) -> Iterable[Any]:
    """The random sites of a trace, in order."""
    return (
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site)
    )


def plate_frame(site: Any, plate: str) -> Any:
    """The frame of the plate of this name around a site; None outside it."""
    return next((f for f in site["cond_indep_stack"] if f.name == plate), None)


def _per_row(site: Any, plate: str) -> torch.Tensor | float:
    frame = plate_frame(site, plate)
    if frame is None:
        return 0.0
    log_prob = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
    kept = [f.dim for f in site["cond_indep_stack"] if f.name in (plate, *_DRAWS)]
    others = [d for d in range(-log_prob.dim(), 0) if d not in kept]
    return log_prob.sum(others) if others else log_prob


def latent_rows(trace: Trace, plate: str = "data") -> dict[str, torch.Tensor]:
    """The values of each unobserved site inside the plate, rows first: ``(num_data, ...)``."""
    values = {}
    for site in sample_sites(trace):
        if not site["is_observed"]:
            axis = plate_frame(site, plate).dim - site["fn"].event_dim
            values[site["name"]] = site["value"].movedim(axis, 0)
    return values

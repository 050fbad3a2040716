"""Sites of traces: the programs' arguments, which sites count, and sums of them to rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_vaeflow.inference.parameters import Program

Args = tuple[Any, ...]


class RowArgs(tuple):
    """Arguments for some rows, which keep what held something for each row when all were there."""

    own: list[bool]


DRAWS = ("num_samples", "num_particles_vectorized")  # plates of draws: ours, and Pyro's losses'


@dataclass(frozen=True)
class RowTerms:
    """Un-annealed log probabilities, nats, each ``(num_data,)`` or ``(num_samples, num_data)``.

    Masks of the programs hold; their scales, annealing among them, do not. Latents that all rows
    share are left out: the terms are a row's own, given those.
    """

    log_likelihood: torch.Tensor
    """log p(x | z): the observed sites."""
    log_prior: torch.Tensor
    """log p(z): the model's unobserved sites."""
    log_guide: torch.Tensor
    """log q(z | x)."""
    summed: torch.Tensor | None = None
    """The log weight where discrete latents of the guide are summed out."""

    @property
    def kl(self) -> torch.Tensor:
        """log q(z | x) - log p(z): an unbiased draw of the KL divergence, nats."""
        return self.log_guide - self.log_prior

    @property
    def elbo(self) -> torch.Tensor:
        """log p(x, z) - log q(z | x), nats: its mean under q is the ELBO."""
        return self.log_likelihood - self.kl

    @property
    def log_weight(self) -> torch.Tensor:
        """log p(x, z) - log q(z | x), nats, with enumerated latents summed out."""
        return self.elbo if self.summed is None else self.summed


def as_args(x: Any) -> Args:
    """The programs' arguments: `x` alone, or the tuple that a program of several arguments takes.

    Raises:
        TypeError: the rows are not a tensor.
    """
    args = x if isinstance(x, tuple) else (x,)
    if not args or not isinstance(args[0], torch.Tensor) or args[0].dim() == 0:
        got = type(args[0]).__name__ if args else "an empty tuple"
        advice = "torch.as_tensor makes one"
        if isinstance(x, dict | list):
            advice = "pass a tuple of tensors in the order of the programs' arguments"
        elif args and hasattr(args[0], "dataset"):
            advice = "pass all rows, as loader.dataset.tensors has them: train draws mini-batches"
        raise TypeError(
            f"x must be a tensor (num_data, ...) or a tuple that starts with one, got {got}; "
            f"{advice}"
        )
    if args[0].layout != torch.strided or args[0].is_meta:
        raise TypeError(
            f"x must be a dense tensor with data, got {args[0].layout} on {args[0].device}; "
            "x.to_dense() makes one"
        )
    detached = RowArgs((args[0].detach(), *args[1:]))  # no gradient is left on the caller's rows
    detached.own = of_rows(args)
    return detached


def of_rows(args: Args) -> list[bool]:
    """Which arguments hold something for each row: tensors with as many entries as the first."""
    if isinstance(args, RowArgs):
        return args.own
    num_data = len(args[0])
    return [isinstance(a, torch.Tensor) and a.dim() > 0 and len(a) == num_data for a in args]


def take_rows(args: Args, rows: torch.Tensor | slice) -> Args:
    """The arguments for these rows: each tensor with as many rows as the first is cut alike.

    `rows` is a slice, or numbers of rows from 0, one dimension of them.
    """

    def take(arg: Any) -> Any:
        # Copies, as programs may work in place; this takes a quarter of the time of indexing.
        return arg[rows].clone() if isinstance(rows, slice) else arg.index_select(0, rows)

    taken = RowArgs(take(a) if own else a for a, own in zip(args, of_rows(args), strict=True))
    taken.own = of_rows(args)
    return taken


def run_once(model: Program, guide: Program, args: Args) -> tuple[Trace, Trace]:
    """Traces of model and guide as they are, without a plate of draws."""
    guide_trace = poutine.trace(guide).get_trace(*args)
    return poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args), guide_trace


def sample_sites(trace: Trace) -> Iterable[Any]:
    """The sites of a trace that have a density, in order; not what ``pyro.deterministic`` notes."""
    for site in trace.nodes.values():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if not (is_reparametrised(site) and _is_masked_out(site["fn"])):
            yield site


def is_data(site: Any) -> bool:
    """Whether a site is observed, and is not what a reparametrised latent leaves."""
    return site["is_observed"] and not is_reparametrised(site)


def is_reparametrised(site: Any) -> bool:
    """Whether a site is an observed Delta, whose density, if it has one, is that of a latent."""
    return site["is_observed"] and isinstance(innermost(site["fn"]), dist.Delta)


def _is_masked_out(distribution: Any) -> bool:
    while (mask := getattr(distribution, "_mask", None)) is None:  # under no public name
        if not hasattr(distribution, "base_dist"):
            return False
        distribution = distribution.base_dist
    return mask is False


def latent_sites(trace: Trace) -> list[Any]:
    """The unobserved random sites of a trace."""
    return [site for site in sample_sites(trace) if not site["is_observed"]]


def guided_latents(model_trace: Trace, guide_trace: Trace) -> list[Any]:
    """The model's latents that have a counterpart, and what others leave for their densities."""
    sites = (site for site in sample_sites(model_trace) if not is_data(site))
    return [s for s in sites if s["name"] in guide_trace.nodes or is_reparametrised(s)]


def is_enumerated(site: Any) -> bool:
    """Whether a loss such as ``TraceEnum_ELBO`` would sum over the values of an unobserved site."""
    parallel = site["infer"].get("enumerate") == "parallel" and not site["is_observed"]
    return parallel and getattr(site["fn"], "has_enumerate_support", False)


def has_enumerated(*traces: Trace) -> bool:
    """Whether the traces were taken with values enumerated along dimensions of their own."""
    return any("_enumerate_dim" in s["infer"] for t in traces for s in sample_sites(t))


def guide_sites(trace: Trace, plate: str = "data") -> list[Any]:
    """The sites of a guide inside the plate whose densities make up log q.

    A site that is auxiliary has no counterpart in the model. Where a Delta carries its value to
    the model's sites, as in autoguides, log q is the density of both; else any value of it gives
    valid weights, and it is left out, as are observed sites and factors.
    """
    sites = [site for site in latent_sites(trace) if plate_frame(site, plate) is not None]
    if any(isinstance(innermost(site["fn"]), dist.Delta) for site in sites):
        return sites
    return [site for site in sites if not site["infer"].get("is_auxiliary")]


def innermost(distribution: Any) -> Any:
    """The distribution inside ``Independent``, ``mask``, ``expand`` and transforms."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


def plate_frame(site: Any, plate: str) -> Any:
    """The frame of the plate of this name around a site; None outside it."""
    return next((f for f in site["cond_indep_stack"] if f.name == plate), None)


def row_sums(sites: Iterable[Any], plate: str) -> torch.Tensor | float:
    """The log probabilities of sites inside the plate, summed but over rows and draws, nats."""
    total: torch.Tensor | float = 0.0
    for site in sites:
        if plate_frame(site, plate) is None:
            continue
        log_prob = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
        kept = [f.dim for f in site["cond_indep_stack"] if f.name in (plate, *DRAWS)]
        others = [d for d in range(-log_prob.dim(), 0) if d not in kept]
        total = total + (log_prob.sum(others) if others else log_prob)
    return total


def row_terms(model_trace: Trace, guide_trace: Trace, plate: str = "data") -> RowTerms:
    """Sums the log probabilities of a pair of traces to rows, and draws if they have such a plate.

    Left out are sites outside the plate, and latents of the model that the guide has no site for:
    they were drawn from the prior, which cancels. Each term has the shape that its sites have.
    """
    model_sites = list(sample_sites(model_trace))
    observed = [site for site in model_sites if is_data(site)]
    latents = guided_latents(model_trace, guide_trace)
    in_guide = guide_sites(guide_trace, plate)
    sums = (row_sums(sites, plate) for sites in (observed, latents, in_guide))
    return RowTerms(*map(torch.as_tensor, sums))

"""The contract between this package and a pair of Pyro programs, and the paired traces it allows.

1. Model and guide take the same arguments; the first has the data rows first.
2. Each opens a plate named "data" of as many rows; every latent and observed site is inside it.
3. The names of unobserved sites agree between model and guide.
4. Both broadcast over an extra dimension on the left: the draws.

Whatever meets these can be trained, scored and diagnosed. A latent outside the plate, one that all
rows share, can be trained but not scored row by row.
"""

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

from pyro_vaeflow.inference.parameters import (
    Program,
    UnseenParams,
    module_mode,
    own_parameters,
    param_scope,
    seeded,
    without_names,
)

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
        # a quarter of the time that indexing takes
        return arg[rows] if isinstance(rows, slice) else arg.index_select(0, rows)

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

    quiet = UnseenParams()

    def with_draws(program: Program) -> Program:
        program = without_names(program)

        def program_with_draws(*args: Any) -> None:
            with pyro.plate("num_samples", num_samples, dim=-max_plate_nesting - 1), quiet:
                program(*args)

        return program_with_draws

    noisy_guide = with_draws(guide) if noise is None else noise(with_draws(guide))
    return get_importance_trace(
        "flat", max_plate_nesting + 1, with_draws(model), noisy_guide, args, {}
    )


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


def check_contract(
    model: Program,
    guide: Program,
    args: Args,
    *,
    plate: str = "data",
    shared_latents: bool = False,
    seed: int = 0,
) -> int:
    """Runs the programs on two rows and returns their depth of plates, draws not counted.

    What they make with ``pyro.param`` is thrown away: two rows are no data to start from.

    Args:
        shared_latents: whether latent sites outside the plate are allowed.
        seed: of what modules draw at their first call and keep: lazy layers and PyroParams.

    Raises:
        ValueError: the contract is broken; the message names the site and the way out.
    """
    few = take_rows(args, slice(0, 2))
    store = pyro.get_param_store()
    with param_scope(model, guide, keep=False), store.scope(store.get_state()):
        with (
            module_mode(model, guide, training=False),
            seeded(seed),
            torch.no_grad(),
            pyro.validation_enabled(True),
        ):
            known = set(store.keys())
            guide_trace = _first_run("guide", guide, few)
            _check_plate("guide", guide_trace, plate, len(few[0]), shared_latents)
            model_trace = _first_run("model", poutine.replay(model, guide_trace), few)
            _check_names(model_trace, guide_trace)
            _check_plate("model", model_trace, plate, len(few[0]), shared_latents)
            _check_parameters(model, guide, few, known)
            sites = [*sample_sites(model_trace), *sample_sites(guide_trace)]
            frames = {frame for site in sites for frame in site["cond_indep_stack"]}
            depth = max(-frame.dim for frame in frames if frame.vectorized)
            if not shared_latents:
                _check_draws(model, guide, few, depth, plate)
    return depth


def sample_sites(trace: Trace) -> Iterable[Any]:
    """The random sites of a trace, in order."""
    return (
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site)
    )


def _frame(site: Any, plate: str) -> Any:
    return next((f for f in site["cond_indep_stack"] if f.name == plate), None)


def _per_row(site: Any, plate: str) -> torch.Tensor | float:
    frame = _frame(site, plate)
    if frame is None:
        return 0.0
    log_prob = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
    kept = [f.dim for f in site["cond_indep_stack"] if f.name in (plate, *_DRAWS)]
    others = [d for d in range(-log_prob.dim(), 0) if d not in kept]
    return log_prob.sum(others) if others else log_prob


def _first_run(role: str, program: Program, args: Args) -> Trace:
    """A trace; what torch and Pyro say of arguments that do not suit the program, in short."""
    try:
        return poutine.trace(program).get_trace(*args)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        x = args[0]
        finite = (
            "" if x.is_complex() or x.isfinite().all() else ", with entries that are not finite"
        )
        raise ValueError(
            f"the {role} fails on rows of x of shape {tuple(x.shape)}, {x.dtype}{finite}: "
            f"{str(error).partition(chr(10))[0]:.300}; pass rows, with the further arguments if "
            "there are any, as it was made for"
        ) from error


def _check_parameters(model: Program, guide: Program, args: Args, known: set[str]) -> None:
    """Refuses parameters with an entry a row: a mini-batch or new rows have none of theirs."""
    made = own_parameters(known)
    if len(args[0]) != 2 or not any(2 in p.shape for p in made.values()):
        return
    store = pyro.get_param_store()
    with store.scope(store.get_state()):
        for name in made:
            del store[name]
        run_once(model, guide, take_rows(args, slice(0, 1)))
        fewer = own_parameters(known)
    for name, p in made.items():
        if name in fewer and fewer[name].shape != p.shape:
            raise ValueError(
                f"parameter {name!r} has shape {tuple(p.shape)} for 2 rows and "
                f"{tuple(fewer[name].shape)} for 1; all rows share the parameters, so the guide "
                "must compute from a row what is the row's own"
            )


def _check_names(model_trace: Trace, guide_trace: Trace) -> None:
    latents = {s["name"] for s in sample_sites(model_trace) if not s["is_observed"]}
    guided = {s["name"] for s in sample_sites(guide_trace) if not s["is_observed"]}
    if missing := sorted(latents - guided):
        raise ValueError(f"the guide has no site for the model's latent {missing}; it has {guided}")
    if extra := sorted(guided - latents):
        raise ValueError(f"the guide samples {extra}, not latents of the model {sorted(latents)}")


def _check_plate(role: str, trace: Trace, plate: str, num_data: int, shared_latents: bool) -> None:
    frames = {f.name: f for site in sample_sites(trace) for f in site["cond_indep_stack"]}
    if plate not in frames:
        raise ValueError(
            f"the {role} has no site inside a plate named {plate!r} (plates: {sorted(frames)}); "
            f"wrap its sites in `with pyro.plate({plate!r}, len(x)):` or pass plate=..."
        )
    frame = frames[plate]
    if not frame.vectorized:
        raise ValueError(
            f"plate {plate!r} of the {role} is a loop over rows; open it once, with all rows at "
            f"once: `with pyro.plate({plate!r}, len(x)):`"
        )
    if (size := frame.full_size or frame.size) != num_data:
        raise ValueError(
            f"plate {plate!r} of the {role} has {size} rows where x has {num_data}; "
            f"make its size len(x), without subsampling: train draws the mini-batches"
        )
    for site in sample_sites(trace):
        if _frame(site, plate) is None and not (shared_latents and not site["is_observed"]):
            raise ValueError(
                f"site {site['name']!r} of the {role} is outside plate {plate!r}; per-row scores "
                "need every latent and observed site inside it"
            )


def _check_draws(model: Program, guide: Program, args: Args, depth: int, plate: str) -> None:
    expected = (3, len(args[0]))
    advice = "index data and parameters from the right (x[..., j]) so that draws can lead"
    try:
        traces = paired_traces(model, guide, args, num_samples=3, max_plate_nesting=depth)
        terms = row_terms(*traces, plate=plate)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"model and guide do not broadcast over 3 draws on the left: {error}; {advice}"
        ) from error
    if terms.log_weight.shape != expected:
        raise ValueError(
            f"3 draws of {expected[1]} rows gave log weights of shape "
            f"{tuple(terms.log_weight.shape)}, not {expected}; {advice}"
        )

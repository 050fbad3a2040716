"""The contract between this package and a pair of Pyro programs.

1. Model and guide take the same arguments; the first has the data rows first.
2. Each opens a plate named "data" of as many rows; every latent and observed site is inside it.
3. The names of unobserved sites agree between model and guide.
4. Both broadcast over an extra dimension on the left: the draws.

Whatever meets these can be trained, scored and diagnosed. A latent outside the plate, one that all
rows share, can be trained but not scored row by row.
"""

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference.parameters import (
    Program,
    module_mode,
    own_parameters,
    param_scope,
    seeded,
)
from pyro_vaeflow.inference.traces import (
    Args,
    paired_traces,
    plate_frame,
    row_terms,
    run_once,
    sample_sites,
    take_rows,
)


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
        shared_latents: whether latent sites outside the plate are allowed; where rows are scored,
            held-out ones of a training too, they are not.
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
    if not any(site["is_observed"] for site in sample_sites(model_trace)):
        raise ValueError("the model observes nothing; it says obs=x at a site, and is passed first")
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
        if plate_frame(site, plate) is None and not (shared_latents and not site["is_observed"]):
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

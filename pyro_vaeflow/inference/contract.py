"""The contract between this package and a pair of Pyro programs.

1. Model and guide take the same arguments; the first has the data rows first.
2. Each opens a plate named "data" of as many rows around what belongs to a row. Sites outside it
   are shared by all rows.
3. Unobserved sites of the model have a counterpart in the guide, but those that are enumerated and
   the missing part of a site with ``obs_mask``. Auxiliary sites are left out.

Whatever meets these can be trained, scored and diagnosed. Nothing is asked of a program's handling
of draws: a probe finds out how they can go through it.
"""

from copy import deepcopy
from typing import Any
from weakref import ref

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference.densities import check_density, check_no_inverse, check_whole
from pyro_vaeflow.inference.pairs import Way
from pyro_vaeflow.inference.parameters import Program, evaluating, modules, seeded
from pyro_vaeflow.inference.probe import alike, fastest_way
from pyro_vaeflow.inference.traces import (
    Args,
    is_data,
    is_enumerated,
    latent_sites,
    of_rows,
    plate_frame,
    run_once,
    sample_sites,
    take_rows,
)

ROWS = 7  # of the probe: more than one, and a size that little in a program is likely to have


def check_contract(
    model: Program,
    guide: Program,
    args: Args,
    *,
    plate: str = "data",
    training: bool = False,
    seed: int = 0,
) -> Way:
    """Runs the programs on a few rows; returns how draws go through them.

    What they make with ``pyro.param`` is thrown away: so few rows are no data to start from.

    Args:
        training: whether guides without a density, such as ``Delta``, are allowed.
        seed: of what modules draw at their first call and keep: lazy layers and PyroParams.

    Raises:
        ValueError: the contract is broken; the message names the site and the way out.
    """
    if getattr(guide, "prototype_trace", guide) is None:  # an autoguide makes itself in a first run
        guide = _copy(guide)
    index = _some_rows(args)
    few = take_rows(args, index)
    with evaluating(model, guide, seed):
        known = set(pyro.get_param_store().keys())
        with pyro.validation_enabled(True):
            guide_trace = _first_run("guide", guide, few)
            _check_plate("guide", guide_trace, plate)
            model_trace = _first_run("model", poutine.replay(model, guide_trace), few)
            _check_names(model_trace, guide_trace, plate)
            _check_plate("model", model_trace, plate)
            _check_enumeration(model_trace, plate)
            check_no_inverse(model_trace, guide_trace)
            if not training:
                check_density(model_trace, guide_trace, plate)
                check_whole(model_trace, plate)
        _check_arguments(model, guide, args, index)
        slow = _slow_way(model_trace, guide_trace, plate)
        options: dict[str, Any] = {"known": known, "plate": plate, "training": training}
        return fastest_way(model, guide, args, index, slow=slow, **options)


def _some_rows(args: Args) -> torch.Tensor:
    """Numbers of rows from all over the table, without an entry that is not finite if they can."""
    index = torch.linspace(0, len(args[0]) - 1, ROWS, device=args[0].device).round().long()
    taken = [a for a, own in zip(take_rows(args, index), of_rows(args), strict=True) if own]
    finite = torch.stack([a.reshape(ROWS, a[0].numel()).isfinite().all(1) for a in taken]).all(0)
    good = index[finite]
    return good[torch.arange(ROWS, device=index.device) % len(good)] if len(good) else index


def _copy(guide: Any) -> Any:
    """A copy of a guide of Pyro's, whose own ``__getstate__`` forgets the model in both."""
    parts = [part for part in guide.modules() if isinstance(part, AutoGuide)]
    kept = [(part._model, part.master) for part in parts]
    copied = deepcopy(guide)
    twins = [part for part in copied.modules() if isinstance(part, AutoGuide)]
    twin_of = dict(zip(map(id, parts), twins, strict=True))
    for part, (model, master) in zip(parts, kept, strict=True):
        twin = twin_of[id(part)]
        part._model, part.master = model, master
        twin._model, twin.master = model, master and ref(twin_of[id(master())])
    return copied


def _first_run(role: str, program: Program, args: Args) -> Trace:
    """A trace; what torch and Pyro say of arguments that do not suit the program, in short."""
    try:
        return poutine.trace(program).get_trace(*args)
    except (IndexError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        x = args[0]
        state = "" if x.isfinite().all() else ", with entries that are not finite"
        for place, arg in enumerate(args):
            if hasattr(arg, "__len__") and not isinstance(arg, torch.Tensor | str):
                state += f", and with all of argument {place}, a {type(arg).__name__}, where each "
                state += "tensor of rows must be an argument of its own"
        types = {p.dtype for part in modules(program) for p in part.parameters()} - {x.dtype}
        if x.is_floating_point() and types:
            state += f", where parameters are {types.pop()}: try x.to(that)"
        raise ValueError(
            f"the {role} fails on rows of x of shape {tuple(x.shape)}, {x.dtype}{state}: "
            f"{str(error).partition(chr(10))[0]:.300}; pass rows, with the further arguments if "
            "there are any, as it was made for; programs must take any number of rows"
        ) from error


def _check_plate(role: str, trace: Trace, plate: str) -> None:
    sites = list(sample_sites(trace))
    frames = {f.name: f for site in sites for f in site["cond_indep_stack"]}
    if role == "guide" and plate not in frames:  # latents that all rows share, or none
        return
    if plate not in frames:
        raise ValueError(
            f"the {role} has no site inside a plate named {plate!r} (plates: {sorted(frames)}); "
            f"wrap what belongs to a row in `with pyro.plate({plate!r}, len(x)):` or pass plate=..."
        )
    frame = frames[plate]
    if not frame.vectorized:
        raise ValueError(
            f"plate {plate!r} of the {role} is a loop over rows; open it once, with all rows at "
            f"once: `with pyro.plate({plate!r}, len(x)):`"
        )
    if frame.size not in (ROWS, -1):
        raise ValueError(
            f"plate {plate!r} of the {role} has {frame.full_size or frame.size} rows whatever the "
            "rows of x; make its size len(x), without subsampling: train draws the mini-batches"
        )
    for site in sites:
        if is_data(site) and role == "model" and plate_frame(site, plate) is None:
            raise ValueError(
                f"site {site['name']!r} of the {role} is outside plate {plate!r}; per-row scores "
                "need every observed site inside it"
            )


def _check_names(model_trace: Trace, guide_trace: Trace, plate: str) -> None:
    if not any(is_data(site) for site in sample_sites(model_trace)):
        raise ValueError("the model observes nothing; it says obs=x at a site, and is passed first")
    latents = {site["name"]: site for site in latent_sites(model_trace)}
    guided = {site["name"]: site for site in latent_sites(guide_trace)}
    missing = sorted(
        name
        for name, site in latents.items()
        if not (name in guided or is_enumerated(site) or _is_masked_out(name, model_trace))
    )
    if missing:
        raise ValueError(
            f"the guide has no site for the model's latent {missing}; it has {set(guided)}"
        )
    for name in latents.keys() & guided.keys():
        pair = {"model": latents[name], "guide": guided[name]}
        outside = [role for role, site in pair.items() if plate_frame(site, plate) is None]
        if len(outside) == 1:
            raise ValueError(
                f"site {name!r} of the {outside[0]} is outside plate {plate!r}, and inside it in "
                f"the other program; wrap it in `with pyro.plate({plate!r}, len(x)):`"
            )
        fn, shape = latents[name]["fn"], guided[name]["value"].shape
        event = shape[len(shape) - fn.event_dim :]
        sizes = zip(reversed(fn.shape()), reversed(shape), strict=False)
        fits = len(fn.shape()) <= len(shape) and all(ours in (1, size) for ours, size in sizes)
        if event != fn.event_shape or not fits:
            raise ValueError(
                f"site {name!r} has shape {tuple(fn.shape())} in the model and {tuple(shape)} in "
                f"the guide, for {ROWS} rows; give it one shape, and the plates one dim="
            )
    auxiliary = {name for name, site in guided.items() if site["infer"].get("is_auxiliary")}
    if extra := sorted(guided.keys() - latents.keys() - auxiliary):
        raise ValueError(f"the guide samples {extra}, not latents of the model {sorted(latents)}")


def _is_masked_out(name: str, trace: Trace) -> bool:
    """Whether a site is what ``obs_mask`` leaves unobserved: nobody asks for its posterior."""
    first, found, _ = name.rpartition("_unobserved")
    return bool(found) and f"{first}_observed" in trace.nodes


def _check_enumeration(model_trace: Trace, plate: str) -> None:
    for site in latent_sites(model_trace):
        if is_enumerated(site) and plate_frame(site, plate) is None:
            raise ValueError(
                f"site {site['name']!r} is enumerated outside plate {plate!r}: summed out, it "
                "would bind all rows together; give it a site in the guide, or move it inside"
            )


def _check_arguments(model: Program, guide: Program, args: Args, index: torch.Tensor) -> None:
    """Refuses a further argument with as many entries as rows that are not the rows'."""
    if len(args[0]) == ROWS:
        return
    few = take_rows(args, index)
    for place, own in enumerate(of_rows(args)):
        if place == 0 or not own:
            continue
        whole = (*few[:place], args[place], *few[place + 1 :])
        cut, uncut = (_log_probs(model, guide, a) for a in (few, whole))
        if uncut is not None and (cut is None or not alike(cut, uncut)):
            raise ValueError(
                f"argument {place} has {len(args[0])} entries, as many as x has rows, and the "
                "programs run with all of them too: bind what is no row's own with "
                "functools.partial"
            )


def _log_probs(model: Program, guide: Program, args: Args) -> torch.Tensor | None:
    with seeded(0):
        try:
            traces = run_once(model, guide, args)
            return torch.stack([torch.as_tensor(trace.log_prob_sum()) for trace in traces])
        except (IndexError, RuntimeError, ValueError):
            return None


def _slow_way(model_trace: Trace, guide_trace: Trace, plate: str) -> Way:
    sites = [*sample_sites(model_trace), *sample_sites(guide_trace)]
    frames = {frame for site in sites for frame in site["cond_indep_stack"]}
    shared = any(plate_frame(site, plate) is None for site in sites if not site["is_observed"])
    layout = "runs" if shared else "rows"
    latents = {site["name"]: site for site in latent_sites(model_trace)}
    unguided = {name: site for name, site in latents.items() if name not in guide_trace.nodes}
    return Way(
        depth=max(-frame.dim for frame in frames if frame.vectorized),
        guide=layout,
        model=layout,
        enumerated=any(is_enumerated(site) for site in sites),
        shared=shared,
        alone=frozenset(name for name, site in unguided.items() if is_enumerated(site)),
        unasked=frozenset(name for name, site in unguided.items() if not is_enumerated(site)),
    )

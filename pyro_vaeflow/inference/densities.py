"""Programs that have no density of the kind that evidence is made of, refused by name."""

from typing import Any

import pyro.distributions as dist
from pyro.poutine.trace_struct import Trace
from torch.distributions import constraints

from pyro_vaeflow.inference.traces import (
    guide_sites,
    innermost,
    is_enumerated,
    latent_sites,
    plate_frame,
    sample_sites,
)


def check_no_inverse(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuses priors such as ``Planar``, which knows the density of its own draws alone."""
    for site in latent_sites(model_trace):
        if site["name"] in guide_trace.nodes and not is_enumerated(site):
            try:
                site["fn"].log_prob(site["value"])
            except (KeyError, NotImplementedError) as error:
                raise ValueError(
                    f"site {site['name']!r} of the model has no density at the guide's draws: a "
                    "transform of it has no inverse, as Planar has none; such a one can be a "
                    "guide's, and affine_autoregressive(...).inv or a spline a prior's"
                ) from error


def check_whole(model_trace: Trace, plate: str) -> None:
    """Refuses rows of which the model takes a random part."""
    for site in sample_sites(model_trace):
        frames = site["cond_indep_stack"] if plate_frame(site, plate) is not None else ()
        for frame in frames:
            if frame.name != plate and 0 < frame.size < (frame.full_size or 0):
                raise ValueError(
                    f"plate {frame.name!r} around site {site['name']!r} draws {frame.size} of "
                    f"{frame.full_size} entries of a row, whose evidence needs all of them: such a "
                    "model can be trained; score one whose plate has no subsample_size"
                )
        if "num_samples" in site["infer"] and is_enumerated(site):
            raise ValueError(
                f"site {site['name']!r} of the model is no sum over its values but of num_samples "
                "draws: such a model can be trained; score one without num_samples"
            )


def check_density(model_trace: Trace, guide_trace: Trace, plate: str) -> None:
    """Refuses guides whose density is of another measure than the prior's."""
    sites = guide_sites(guide_trace, plate)
    carried = any(site["infer"].get("is_auxiliary") for site in sites)
    for site in sites:
        name, fn = site["name"], innermost(site["fn"])
        if name not in model_trace.nodes:
            continue
        is_delta = isinstance(fn, dist.Delta) and not carried
        if is_delta and isinstance(innermost(model_trace.nodes[name]["fn"]), dist.Delta):
            continue
        fns = [innermost(t.nodes[name]["fn"]) for t in (model_trace, guide_trace)]
        discrete = [_is_discrete(fn) for fn in fns]
        if is_delta or discrete[0] != discrete[1]:
            shown = site["fn"]
            while isinstance(shown, dist.Independent | dist.MaskedDistribution):
                shown = shown.base_dist
            raise ValueError(
                f"site {name!r} of the guide is a {type(shown).__name__}, which has no density of "
                "the kind that the model's prior has: such a guide, trained or not, gives no "
                "evidence; score with one that draws from "
                + ("a discrete distribution" if discrete[0] else "a density, such as a Normal")
            )


def _is_discrete(distribution: Any) -> bool:
    support = distribution.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return bool(getattr(support, "is_discrete", False))

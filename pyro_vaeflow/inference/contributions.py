"""Why a row is anomalous: its expected negative log-likelihood, feature by feature."""

from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch import Independent
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.pairs import Draws
from pyro_vaeflow.inference.parameters import Program, module_mode
from pyro_vaeflow.inference.scoring import warn_of_tails
from pyro_vaeflow.inference.traces import DRAWS, as_args, is_data, sample_sites


def contributions(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_samples: int = 100,
    site: str = "x",
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str = "data",
) -> torch.Tensor:
    r"""What each feature adds to a row's anomaly score, nats, in the shape of the site's value:
    ``(num_data, num_features)`` for rows of numbers, ``(num_data, 1)`` for a site of one number.

    .. math:: c_j = -\sum_k \bar w_k \log p(x_j | z_k), \qquad \bar w_k = w_k / \sum_i w_i

    The self-normalised weights make it an average under the posterior p(z|x). A row's features add
    up to its expected negative log-likelihood at the site.

    Args:
        model, guide, x, num_samples, seed, chunk_size, plate: as in `score`.
        site: the observed site, whose event dimensions must factorise: an ``Independent`` one such
            as ``Normal(...).to_event(1)``, one without event dimensions, or one with a method
            ``feature_log_prob(value)`` that returns a log probability a feature.

    Raises:
        ValueError: there is no such site, or its likelihood does not factorise.

    Warns:
        KhatWarning: counts and names the rows whose k-hat is above 0.7: their weights are those of
            a few draws.

    Example:
        >>> from pyro_vaeflow import Guide, Model, contributions
        >>> contributions(Model(3), Guide(3), torch.rand(5, 3), num_samples=20).shape
        torch.Size([5, 3])
    """
    parts, khats = [], []
    options: dict[str, Any] = {"seed": seed, "chunk_size": chunk_size, "plate": plate}
    for chunk in trace_chunks(model, guide, x, num_samples=num_samples, **options):
        with torch.no_grad(), module_mode(model, guide, training=False):
            features = torch.cat([_features(chunk, trace, site) for trace, _ in chunk.traces])
        log_weight = chunk.terms.log_weight
        weights = log_weight.softmax(0)
        weights = weights.view(*weights.shape, *[1] * (features.dim() - 2))
        parts.append(-(weights * features).sum(0))
        khats.append(importance.khat(log_weight))
    if not parts:
        return torch.empty_like(as_args(x)[0])
    warn_of_tails(torch.cat(khats))
    return torch.cat(parts)


def _features(chunk: Draws, model_trace: Trace, site: str) -> torch.Tensor:
    """log p(x_j | z) at the site, ``(num_samples, num_data, ...)``."""
    observed = [s["name"] for s in sample_sites(model_trace) if is_data(s)]
    if site not in observed:
        raise ValueError(f"site must be an observed site, one of {observed}, got {site!r}")
    node = model_trace.nodes[site]
    features = feature_log_prob(node["fn"], node["value"])
    if node["mask"] is not None:
        features = _masked(features, node["mask"], node["fn"].event_dim)
    features = chunk.draws_of(features, node, chunk.way.model)
    frames = sorted((f for f in node["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
    plates = [f.size for f in frames if f.name not in (chunk.plate, *DRAWS)]
    event = features.shape[features.dim() - node["fn"].event_dim :]
    return features.reshape(*features.shape[:2], *(plates + [*event] or [1]))


def feature_log_prob(distribution: Any, value: torch.Tensor) -> torch.Tensor:
    """log p(value_j) of each feature, the shape of the value, nats.

    Raises:
        ValueError: the distribution's event dimensions do not factorise.
    """
    if hasattr(distribution, "feature_log_prob"):
        return distribution.feature_log_prob(value)
    event_dim = distribution.event_dim
    if isinstance(distribution, MaskedDistribution):
        features = feature_log_prob(distribution.base_dist, value)
        return _masked(features, distribution._mask, event_dim)  # under no public name
    if event_dim == 0:
        return distribution.log_prob(value)
    if isinstance(distribution, Independent):
        if event_dim == distribution.reinterpreted_batch_ndims:
            return distribution.base_dist.log_prob(value)
    raise ValueError(
        f"{type(distribution).__name__} of event_dim {event_dim} does not factorise over "
        "features; use Distribution(...).to_event(1) or give it a feature_log_prob method"
    )


def _masked(features: torch.Tensor, mask: torch.Tensor | bool, event_dim: int) -> torch.Tensor:
    mask = torch.as_tensor(mask, device=features.device)
    return scale_and_mask(features, mask=mask.reshape(*mask.shape, *[1] * event_dim))

"""Posteriors by name: each entry of `FLOWS` builds a stack of Pyro transforms.

A builder is a function ``(latent_dim, num_flows, context_dim, **options)`` that returns a list of
Pyro transform modules: conditional ones when ``context_dim`` is a size, plain ones when it is
None. To add a posterior, register one:

    >>> from pyro.distributions import transforms
    >>> def radial(latent_dim, num_flows, context_dim=None):
    ...     if context_dim is None:
    ...         return [transforms.radial(latent_dim) for _ in range(num_flows)]
    ...     sizes = latent_dim, context_dim
    ...     return [transforms.conditional_radial(*sizes) for _ in range(num_flows)]
    >>> FLOWS["radial"] = radial
    >>> from pyro_vaeflow import Guide
    >>> guide = Guide(num_features=3, latent_dim=2, flow="radial", num_flows=4)
    >>> del FLOWS["radial"]
"""

import math
from collections.abc import Callable

import torch
from pyro.distributions import transforms
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import nn

from pyro_vaeflow.programs.iaf import (
    AutoregressiveLayers,
    ConditionalIAFStack,
    gate_bias,
    layer_order,
)
from pyro_vaeflow.programs.planar import ConditionalPlanarStack, PlanarLayers, start_near_identity
from pyro_vaeflow.validation import check_size

MAX_FLOWS = 100


def diagonal(latent_dim: int, num_flows: int, context_dim: int | None = None) -> list[nn.Module]:
    """No transform: the diagonal posterior's normal posterior with a diagonal covariance."""
    if num_flows != 0:
        raise ValueError(f"num_flows must be 0 for flow='diagonal', got {num_flows!r}")
    return []


def planar(latent_dim: int, num_flows: int, context_dim: int | None = None) -> list[nn.Module]:
    """Planar layers: Pyro's ``Planar``, or a `ConditionalPlanarStack` given a context."""
    check_size("num_flows", num_flows, 1, MAX_FLOWS)
    if context_dim is not None:
        return [ConditionalPlanarStack(latent_dim, context_dim, num_flows)]
    layers = [transforms.Planar(latent_dim) for _ in range(num_flows)]
    for layer in layers:
        start_near_identity(layer.u, layer.w)
    return [PlanarLayers(layers)]


def iaf(
    latent_dim: int,
    num_flows: int,
    context_dim: int | None = None,
    hidden_dim: int | None = None,
    stable: bool = False,
) -> list[nn.Module]:
    """Inverse autoregressive layers, order reversed in between: Pyro's ``AffineAutoregressive``,
    or `ConditionalIAFStack` given a context.

    Args:
        hidden_dim: the MADE's width, ``4 * latent_dim`` by default.
        stable: gates in place of scales.
    """
    check_size("num_flows", num_flows, 1, MAX_FLOWS)
    hidden_dim = 4 * latent_dim if hidden_dim is None else hidden_dim
    if context_dim is not None:
        return [ConditionalIAFStack(latent_dim, context_dim, num_flows, hidden_dim, stable)]
    layers = []
    for k in range(num_flows):
        made = AutoRegressiveNN(latent_dim, [hidden_dim], permutation=layer_order(latent_dim, k))
        _start_near_zero(made.layers[-1])
        layers.append(
            transforms.AffineAutoregressive(
                made, log_scale_min_clip=-3.0, stable=stable, sigmoid_bias=gate_bias(num_flows)
            )
        )
    return [AutoregressiveLayers(layers)]


def spline(
    latent_dim: int,
    num_flows: int,
    context_dim: int | None = None,
    hidden_dim: int | None = None,
    count_bins: int = 8,
    bound: float = 4.0,
) -> list[nn.Module]:
    """Pyro's autoregressive rational splines (Durkan et al. 2019, arXiv:1906.04032), order reversed
    in between: with the orders that Pyro draws, no layer may bend one coordinate given another.

    Args:
        hidden_dim: the MADE's width, ``4 * latent_dim`` by default.
        count_bins: segments of each spline.
        bound: the spline acts within ``[-bound, bound]`` and is the identity outside.
    """
    check_size("num_flows", num_flows, 1, MAX_FLOWS)
    hidden_dims = [4 * latent_dim if hidden_dim is None else hidden_dim]
    param_dims = [count_bins, count_bins, count_bins - 1, count_bins]
    layers: list[nn.Module] = []
    for k in range(num_flows):
        order = layer_order(latent_dim, num_flows - 1 - k)  # the last layer has the columns'
        if context_dim is None:
            made = AutoRegressiveNN(latent_dim, hidden_dims, param_dims, order)
            layer = transforms.SplineAutoregressive
        else:
            sizes = latent_dim, context_dim, hidden_dims
            made = ConditionalAutoRegressiveNN(*sizes, param_dims, order)
            layer = transforms.ConditionalSplineAutoregressive
        layers.append(layer(latent_dim, made, count_bins=count_bins, bound=bound))
    return layers


FLOWS: dict[str, Callable[..., list[nn.Module]]] = {
    "diagonal": diagonal,
    "planar": planar,
    "iaf": iaf,
    "spline": spline,
}


def _start_near_zero(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.01 / math.sqrt(layer.in_features))
        layer.bias.zero_()

"""Posteriors by name: each entry of `FLOWS` builds a list of Pyro's own transform modules.

A builder is a function ``(latent_dim, num_flows, context_dim, **options)`` that returns conditional
transforms where ``context_dim`` is a size, plain ones where it is None. To add a posterior:

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
from typing import Any

import torch
from pyro.distributions import transforms
from pyro.distributions.torch_transform import TransformModule
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, ConditionalDenseNN, DenseNN
from torch import nn
from torch.distributions import constraints

from pyro_vaeflow.programs.fused import PlanarMap
from pyro_vaeflow.validation import check_size

MAX_FLOWS = 100
START_SCALE = 0.01  # of what a layer of an untrained flow makes of its context


def diagonal(latent_dim: int, num_flows: int, context_dim: int | None = None) -> list[nn.Module]:
    """No transform: a normal posterior with a diagonal covariance.

    Raises:
        ValueError: `num_flows` is not 0.
    """
    if num_flows != 0:
        raise ValueError(f"num_flows must be 0 for flow='diagonal', got {num_flows!r}")
    return []


def full(latent_dim: int, num_flows: int, context_dim: int | None = None) -> list[nn.Module]:
    r"""A normal posterior with a full covariance: one linear autoregressive layer.

    .. math:: z = (I + L) z_0, \qquad L_{ij} = 0 \text{ for } j \ge i

    It says what correlation alone would do, so that a flow can be judged by what it does beyond.

    Raises:
        ValueError: `num_flows` is not 1.
    """
    if num_flows != 1:
        raise ValueError(f"num_flows must be 1 for flow='full', got {num_flows!r}")
    if latent_dim == 1:
        return []
    net = LinearAutoRegressiveNN(latent_dim, context_dim)
    plain, conditional = transforms.AffineAutoregressive, transforms.ConditionalAffineAutoregressive
    return [plain(net) if context_dim is None else conditional(net)]


def coupling(
    latent_dim: int,
    num_flows: int,
    context_dim: int | None = None,
    hidden_dim: int | None = None,
) -> list[nn.Module]:
    r"""Pyro's ``AffineCoupling`` layers or their conditional form, coordinates reversed in between.

    Half of the coordinates are scaled and shifted given the others, all at once in both directions.

    References:
        L. Dinh, J. Sohl-Dickstein, S. Bengio, Density estimation using Real NVP, 2017,
        arXiv:1605.08803.

    Args:
        hidden_dim: the width of each layer's network, ``4 * latent_dim`` by default.

    Raises:
        ValueError: `num_flows` is not from 1 to 100.
    """
    check_size("num_flows", num_flows, 1, MAX_FLOWS)
    if latent_dim == 1:
        return []
    hidden_dims, layers = [4 * latent_dim if hidden_dim is None else hidden_dim], []
    for k in range(num_flows):
        given = (latent_dim + k % 2) // 2
        sizes = hidden_dims, [latent_dim - given] * 2
        if context_dim is None:
            layer = transforms.AffineCoupling(given, net := DenseNN(given, *sizes))
        else:
            net = ConditionalDenseNN(given, context_dim, *sizes)
            layer = transforms.ConditionalAffineCoupling(given, net)
        for parameter in net.layers[-1].parameters():  # near the identity
            parameter.data.mul_(START_SCALE)
        layers += [layer, Reversal()]
    return layers[: 2 * num_flows - num_flows % 2]  # in the order of the columns again


def planar(latent_dim: int, num_flows: int, context_dim: int | None = None) -> list[nn.Module]:
    r"""Pyro's ``Planar`` layers, or ``ConditionalPlanar`` over a linear map of the context.

    .. math:: z_k = z_{k-1} + \hat u_k \, \tanh(w_k^T z_{k-1} + b_k)

    References:
        D. Rezende, S. Mohamed, Variational Inference with Normalizing Flows, 2015,
        arXiv:1505.05770, eq. (10)-(12).

    Raises:
        ValueError: `num_flows` is not from 1 to 100.
    """
    check_size("num_flows", num_flows, 1, MAX_FLOWS)
    layers: list[nn.Module] = []
    for _ in range(num_flows):
        if context_dim is None:
            layer = transforms.Planar(latent_dim)
            _start_near_identity(layer.u, layer.w)
        else:
            layer = transforms.ConditionalPlanar(PlanarMap(context_dim, latent_dim))
            with torch.no_grad():
                layer.nn.weight.mul_(START_SCALE)
            _start_near_identity(*layer.nn.bias.detach()[1:].chunk(2))
        layers.append(layer)
    return layers


def iaf(
    latent_dim: int,
    num_flows: int,
    context_dim: int | None = None,
    hidden_dim: int | None = None,
    stable: bool = True,
) -> list[nn.Module]:
    r"""Pyro's ``AffineAutoregressive`` layers or their conditional form, order reversed in between.

    .. math:: z_k = \sigma_k z_{k-1} + (1 - \sigma_k) \mu_k

    References:
        D. Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016,
        arXiv:1606.04934, eq. (10) and (14).

    Args:
        hidden_dim: the width of each layer's network (MADE), ``4 * latent_dim`` by default.
        stable: gates :math:`\sigma_k` in (0, 1), as above; else scales, :math:`\sigma_k z + \mu_k`.

    Raises:
        ValueError: `num_flows` is not from 1 to 100, or `hidden_dim` is below `latent_dim`.
    """
    check_size("num_flows", num_flows, 1, MAX_FLOWS)
    options = {"stable": stable, "sigmoid_bias": gate_bias(num_flows), "log_scale_min_clip": -3.0}
    plain, conditional = transforms.AffineAutoregressive, transforms.ConditionalAffineAutoregressive
    layer = plain if context_dim is None else conditional
    layers: list[nn.Module] = []
    for k in range(num_flows):
        made = _made(latent_dim, context_dim, hidden_dim, [1, 1], layer_order(latent_dim, k))
        with torch.no_grad():  # a stack of any depth starts near the identity
            made.layers[-1].weight.normal_(0.0, START_SCALE / math.sqrt(made.hidden_dims[-1]))
            made.layers[-1].bias.zero_()
        layers.append(layer(made, **options))
    return layers


def spline(
    latent_dim: int,
    num_flows: int,
    context_dim: int | None = None,
    hidden_dim: int | None = None,
    count_bins: int = 8,
    bound: float = 4.0,
) -> list[nn.Module]:
    """Pyro's ``SplineAutoregressive`` layers or their conditional form, order reversed in between.

    With the orders that Pyro draws, no layer may bend one coordinate given another.

    References:
        C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, Neural Spline Flows, 2019,
        arXiv:1906.04032.

    Args:
        hidden_dim: the width of each layer's network (MADE), ``4 * latent_dim`` by default.
        count_bins: segments of each spline.
        bound: the spline acts within ``[-bound, bound]`` and is the identity outside.

    Raises:
        ValueError: `num_flows` is not from 1 to 100, or `hidden_dim` is below `latent_dim`.
    """
    check_size("num_flows", num_flows, 1, MAX_FLOWS)
    param_dims = [count_bins, count_bins, count_bins - 1, count_bins]
    plain, conditional = transforms.SplineAutoregressive, transforms.ConditionalSplineAutoregressive
    layer = plain if context_dim is None else conditional
    layers: list[nn.Module] = []
    for k in range(num_flows):
        order = layer_order(latent_dim, num_flows - 1 - k)  # the last layer has the columns'
        made = _made(latent_dim, context_dim, hidden_dim, param_dims, order)
        layers.append(layer(latent_dim, made, count_bins=count_bins, bound=bound))
    return layers


FLOWS: dict[str, Callable[..., list[nn.Module]]] = {
    "diagonal": diagonal,
    "planar": planar,
    "iaf": iaf,
    "spline": spline,
    "full": full,
    "coupling": coupling,
}


class LinearAutoRegressiveNN(nn.Module):
    """Shifts that are linear in the coordinates before each, for an affine autoregressive layer.

    Example:
        >>> shift, log_scale = LinearAutoRegressiveNN(3)(torch.ones(5, 3))
        >>> shift.shape, shift[:, 0].tolist()
        (torch.Size([5, 3]), [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(self, latent_dim: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.permutation = torch.arange(latent_dim)
        self.entries = nn.Parameter(torch.zeros(latent_dim * (latent_dim - 1) // 2))
        if context_dim is not None:
            self.of_context = nn.Linear(context_dim, len(self.entries), bias=False)
            nn.init.zeros_(self.of_context.weight)

    def get_permutation(self) -> torch.Tensor:
        """The order in which Pyro inverts the layer."""
        return self.permutation

    def forward(
        self, z: torch.Tensor, context: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shifts and log-scales, which are 0, ``(..., latent_dim)`` each."""
        entries = self.entries if context is None else self.entries + self.of_context(context)
        below = entries.new_zeros(*entries.shape[:-1], z.shape[-1], z.shape[-1])
        rows, columns = torch.tril_indices(z.shape[-1], z.shape[-1], -1)
        below[..., rows, columns] = entries
        shift = (below @ z.unsqueeze(-1)).squeeze(-1)
        return shift, torch.zeros_like(shift)


class Reversal(TransformModule):
    """The coordinates in reversed order: ``pyro.distributions.transforms.Permute`` as a module."""

    domain = codomain = constraints.real_vector
    bijective = volume_preserving = True

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return y.flip(-1)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Zeros ``(...)``."""
        return x.new_zeros(x.shape[:-1])


def layer_order(latent_dim: int, layer: int) -> torch.Tensor:
    """The autoregressive order of the coordinates: forward in even layers, reversed in odd."""
    order = torch.arange(latent_dim)
    return order if layer % 2 == 0 else order.flip(0)


def gate_bias(num_flows: int) -> float:
    """The bias of gates such that `num_flows` layers together shrink as one of Pyro's, bias 2."""
    shrink = (1.0 / (1.0 + math.exp(-2.0))) ** (1.0 / num_flows)
    return math.log(shrink / (1.0 - shrink))


def _made(
    latent_dim: int,
    context_dim: int | None,
    hidden_dim: int | None,
    param_dims: list[int],
    order: torch.Tensor,
) -> Any:
    """A masked network of one hidden layer, which the context enters where there is one."""
    hidden_dim = 4 * latent_dim if hidden_dim is None else hidden_dim
    if hidden_dim < latent_dim:
        raise ValueError(f"hidden_dim must be at least latent_dim={latent_dim}, got {hidden_dim}")
    if context_dim is None:
        return AutoRegressiveNN(latent_dim, [hidden_dim], param_dims, order)
    return ConditionalAutoRegressiveNN(latent_dim, context_dim, [hidden_dim], param_dims, order)


@torch.no_grad()
def _start_near_identity(u: torch.Tensor, w: torch.Tensor) -> None:
    """Draws u and w ``(latent_dim,)`` anew, in place, so that a layer is a small shift along w.

    From Pyro's start each layer contracts: fifty take 19 nats from a density in three dimensions.
    """
    u.normal_(0.0, START_SCALE / math.sqrt(len(u)))
    w.normal_(0.0, 1.0 / math.sqrt(len(w)))
    # w^T u_hat = softplus(w^T u) - 1 is 0, and the layer the identity, at log(e - 1)
    u.add_((math.log(math.e - 1.0) - w @ u) * w / w.square().sum())

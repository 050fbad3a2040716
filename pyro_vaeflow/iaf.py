"""All layers of an inverse autoregressive flow as one Pyro transform.

The same function as a stack of Pyro's ``AffineAutoregressive`` or its conditional form, with one
hidden layer each and the order of the coordinates reversed from layer to layer. But the context
enters all layers through one matrix product a row, not one a layer and draw, and masks are applied
once.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.nn.auto_reg_nn import create_mask
from torch import nn
from torch.distributions import Transform, constraints

from pyro_vaeflow.fused import FusedLayers


def layer_order(input_dim: int, layer: int) -> torch.Tensor:
    """The autoregressive order of the coordinates: forward in even layers, reversed in odd."""
    order = torch.arange(input_dim)
    return order if layer % 2 == 0 else order.flip(0)


def gate_bias(num_flows: int) -> float:
    """The bias of gates such that `num_flows` layers together shrink as one of Pyro's, bias 2."""
    shrink = (1.0 / (1.0 + math.exp(-2.0))) ** (1.0 / num_flows)
    return math.log(shrink / (1.0 - shrink))


class ConditionalIAFStack(ConditionalTransformModule):
    r"""K layers :math:`z_k = \sigma_k z_{k-1} + \mu_k`, autoregressive, given a context.

    :math:`\mu_k, \log\sigma_k` come from a masked network (MADE) of one hidden layer, to which the
    context is added. With `stable`, :math:`z_k = \sigma_k z_{k-1} + (1 - \sigma_k) \mu_k` with a
    gate :math:`\sigma_k` in (0, 1).

    References:
        D. Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016,
        arXiv:1606.04934, eq. (10) and (14).

    Args:
        input_dim: size of z.
        context_dim: size of the context.
        num_flows: K.
        hidden_dim: the MADE's width, at least `input_dim`.
        stable: gate instead of scale.
        log_scale_clip: the largest absolute log-scale of a layer that is not gated.

    Example:
        >>> stack = ConditionalIAFStack(input_dim=2, context_dim=3, num_flows=5, hidden_dim=16)
        >>> transform = stack.condition(torch.randn(5, 3))
        >>> z = torch.randn(100, 5, 2)
        >>> torch.allclose(transform._inverse(transform(z)), z, atol=1e-4)
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        num_flows: int,
        hidden_dim: int,
        stable: bool = False,
        log_scale_clip: float = 3.0,
    ) -> None:
        super().__init__()
        if hidden_dim < input_dim:
            raise ValueError(
                f"hidden_dim must be at least latent_dim={input_dim}, got {hidden_dim}"
            )
        self.stable, self.log_scale_clip = stable, log_scale_clip
        self.context_map = nn.Linear(context_dim, num_flows * hidden_dim)
        bound = 1.0 / math.sqrt(input_dim)
        self.weight_in = nn.Parameter(
            torch.empty(num_flows, hidden_dim, input_dim).uniform_(-bound, bound)
        )
        # Small last weights: a stack of any depth starts near the identity.
        self.weight_out = nn.Parameter(
            0.01 / math.sqrt(hidden_dim) * torch.randn(num_flows, 2 * input_dim, hidden_dim)
        )
        self.bias_out = nn.Parameter(torch.zeros(num_flows, 2 * input_dim))
        masks = [
            create_mask(input_dim, 1, [hidden_dim], layer_order(input_dim, k), 2)[0]
            for k in range(num_flows)
        ]
        self.register_buffer("mask_in", torch.stack([mask[0][:, 1:] for mask in masks]))
        self.register_buffer("mask_out", torch.stack([mask[1] for mask in masks]))

    def condition(self, context: torch.Tensor) -> "IAFStack":
        hidden = self.context_map(context).unflatten(-1, (len(self.weight_in), -1))
        return IAFStack(
            hidden,
            self.weight_in * self.mask_in,
            self.weight_out * self.mask_out,
            self.bias_out,
            self.stable,
            self.log_scale_clip,
            gate_bias(len(self.weight_in)),
        )


class IAFStack(Transform):
    """IAF layers with given weights and the context's part ``(..., K, hidden_dim)``."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        hidden: torch.Tensor,
        weight_in: torch.Tensor,
        weight_out: torch.Tensor,
        bias_out: torch.Tensor,
        stable: bool,
        log_scale_clip: float,
        gate_bias: float,
    ) -> None:
        super().__init__(cache_size=1)
        layers = (hidden.unbind(-2), weight_in, weight_out, bias_out)
        self.layers = list(zip(*layers, strict=True))
        self.stable, self.log_scale_clip = stable, log_scale_clip
        self.gate_bias = gate_bias

    def _affine(
        self, layer: tuple[torch.Tensor, ...], x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Shift, scale and log-scale of one layer at its input."""
        hidden, weight_in, weight_out, bias_out = layer
        activation = F.linear(x, weight_in).add(hidden).relu_()
        shift, raw = F.linear(activation, weight_out, bias_out).chunk(2, dim=-1)
        if self.stable:
            gate = raw + self.gate_bias
            scale = gate.sigmoid()
            return (1.0 - scale) * shift, scale, F.logsigmoid(gate)
        # Pyro passes gradients through its clip, and a log-scale past it then runs away.
        log_scale = raw.clamp(-self.log_scale_clip, self.log_scale_clip)
        return shift, log_scale.exp(), log_scale

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x)
        for layer in self.layers:
            shift, scale, log_scale = self._affine(layer, x)
            x = torch.addcmul(shift, scale, x)
            total = total + log_scale
        self._cached_log_scale = total
        return x

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        for number, layer in reversed(list(enumerate(self.layers))):
            x = torch.zeros_like(y)
            for index in layer_order(y.shape[-1], number).tolist():
                shift, scale, _ = self._affine(layer, x)
                column = (y[..., index] - shift[..., index]) / scale[..., index]
                x = x.index_copy(-1, torch.tensor([index], device=y.device), column.unsqueeze(-1))
            y = x
        self._call(y)  # for its log-scales
        return y

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x_old, y_old = self._cached_x_y
        if x is not x_old or y is not y_old:
            self(x)
        return self._cached_log_scale.sum(-1)


class AutoregressiveLayers(FusedLayers):
    """Pyro's ``AffineAutoregressive`` layers of one hidden layer each, run as one `IAFStack`.

    Their MADEs must have the orders of `layer_order`, and their options be alike.
    """

    def as_one(self) -> IAFStack:
        layers: list[Any] = list(self.layers)
        ends = [layer.arn.layers for layer in layers]
        return IAFStack(
            torch.stack([first.bias for first, _ in ends]),
            torch.stack([first.weight * first.mask for first, _ in ends]),
            torch.stack([last.weight * last.mask for _, last in ends]),
            torch.stack([last.bias for _, last in ends]),
            layers[0].stable,
            layers[0].log_scale_max_clip,
            layers[0].sigmoid_bias,
        )

"""All layers of an inverse autoregressive flow as one Pyro transform.

The same function as a stack of Pyro's ``AffineAutoregressive`` or its conditional form, with one
hidden layer each and the order of the coordinates reversed from layer to layer. But the context
enters all layers through one matrix product a row, not one a layer and draw, and masks are applied
once.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.nn.auto_reg_nn import create_mask
from torch import nn
from torch.distributions import Transform, constraints

from pyro_vaeflow.programs.fused import FusedLayers
from pyro_vaeflow.programs.iaf_steps import (
    IAFSteps,
    iaf_steps,
    iaf_steps_in_blocks,
    shift_and_gate,
)


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
        # Layers first and rows last: then each coordinate's numbers lie side by side.
        rows, linear = context.reshape(-1, context.shape[-1]), self.context_map
        hidden = torch.addmm(linear.bias.unsqueeze(-1), linear.weight, rows.T)
        return IAFStack(
            hidden.view(*self.weight_in.shape[:2], *context.shape[:-1]),
            self.weight_in * self.mask_in,
            self.weight_out * self.mask_out,
            self.bias_out,
            gate_bias(len(self.weight_in)) if self.stable else None,
            self.log_scale_clip,
        )


class IAFStack(Transform):
    """IAF layers with given weights and the context's part ``(K, hidden_dim, ...)``, rows last.

    Args:
        gate_bias: added to the gates; None for scales, clipped at `log_scale_clip`.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self,
        hidden: torch.Tensor,
        weight_in: torch.Tensor,
        weight_out: torch.Tensor,
        bias_out: torch.Tensor,
        gate_bias: float | None,
        log_scale_clip: float,
    ) -> None:
        super().__init__(cache_size=1)
        if gate_bias is not None:
            shift, raw = bias_out.chunk(2, -1)
            bias_out = torch.cat([shift, raw + gate_bias], -1)
        self.layers = (hidden, weight_in, weight_out, bias_out)
        self.clip = log_scale_clip if gate_bias is None else None

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.layers[0].shape[2:]
        batch = torch.broadcast_shapes(x.shape[:-1], rows)
        z = x.expand(*batch, x.shape[-1]).movedim(-1, 0)
        steps: Callable[..., Any] = iaf_steps
        if torch.is_grad_enabled() and z.dim() == 2 and z.shape[1:] == rows:
            steps = IAFSteps.apply
        elif not torch.is_grad_enabled() and z.dim() - 1 > len(rows):  # a plate of draws
            steps = iaf_steps_in_blocks
        z, log_scale = steps(z, *self.layers, self.clip)
        self._cached_log_scale = log_scale.movedim(0, -1)
        return z.movedim(0, -1)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        z = y.movedim(-1, 0)
        layers = list(zip(*self.layers, strict=True))
        for number, (hidden, v, w, bias) in reversed(list(enumerate(layers))):
            x = torch.zeros_like(z)
            for index in layer_order(len(z), number).tolist():
                shift, _, scale = shift_and_gate(x, hidden, v, w, bias, self.clip)
                column = (z[index] - shift[index]) / scale[index]
                if self.clip is None:
                    column = column + shift[index]
                x = x.index_copy(0, torch.tensor([index], device=y.device), column.unsqueeze(0))
            z = x
        x = z.movedim(0, -1)
        self._call(x)  # for its log-scales
        return x

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
            layers[0].sigmoid_bias if layers[0].stable else None,
            layers[0].log_scale_max_clip,
        )

r"""The arithmetic of IAF layers, and its gradient by hand: fewer and larger operations.

All tensors have the rows last, so that each coordinate's numbers lie side by side. With the
context's part h, a layer is

.. math::
    a = \max(0, V z + h), \quad (\mu, r) = W a + b, \quad
    z' = \mu + \sigma(r)\,(z - \mu) \text{ gated, or } z' = \mu + \exp(r)\,z

with a clipped r in the second form. The log-scales are :math:`\log\sigma(r)`, or r.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from pyro_vaeflow.programs.bernoulli import log_of_product

NUMBERS = 2**18  # of the hidden layer in a block: 1 MiB of float32


def shift_and_gate(
    z: torch.Tensor,
    hidden: torch.Tensor,
    weight_in: torch.Tensor,
    weight_out: torch.Tensor,
    bias_out: torch.Tensor,
    clip: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer's shift, raw r and scale at z, each ``(dim, ...)``.

    Args:
        z: ``(dim, ...)``.
        hidden: h, ``(hidden_dim, ...)``; its dimensions after the first broadcast with those of z.
        weight_in, weight_out, bias_out: V, W and b.
        clip: the largest absolute log-scale; None for a gate.
    """
    missing = (1,) * (z.dim() - hidden.dim())
    hidden = hidden.reshape(len(hidden), *missing, *hidden.shape[1:])
    flat = weight_in @ z.unsqueeze(-1).flatten(1)  # (hidden_dim, 1) of a single z
    act = flat.view(len(flat), *z.shape[1:]).add(hidden).relu_()
    out = torch.addmm(bias_out.unsqueeze(-1), weight_out, act.view_as(flat))
    shift, raw = out.view(len(out), *z.shape[1:]).chunk(2)
    # Pyro passes gradients through its clip, and a log-scale past it then runs away.
    return shift, raw, raw.sigmoid() if clip is None else raw.clamp(-clip, clip).exp()


def _log_sigmoid(raw: torch.Tensor, sigmoid: torch.Tensor) -> torch.Tensor:
    """torch's own is slow. Below -20 it is r to the last digit, where the sigmoid may be 0."""
    if torch.is_grad_enabled():
        return F.logsigmoid(raw)
    return sigmoid.log().maximum(raw.clamp(max=-20.0))


def iaf_steps(
    z: torch.Tensor,
    hidden: torch.Tensor,
    weight_in: torch.Tensor,
    weight_out: torch.Tensor,
    bias_out: torch.Tensor,
    clip: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All layers one after another, and the sum of their log-scales, each ``(dim, ...)``.

    The arguments are those of `shift_and_gate`, with the layers first.
    """
    log_scale: Any = 0.0
    for layer in zip(hidden, weight_in, weight_out, bias_out, strict=True):
        shift, raw, scale = shift_and_gate(z, *layer, clip)
        z = torch.lerp(shift, z, scale) if clip is None else torch.addcmul(shift, scale, z)
        log_scale = log_scale + (
            _log_sigmoid(raw, scale) if clip is None else raw.clamp(-clip, clip)
        )
    return z, log_scale


def iaf_steps_in_blocks(
    z: torch.Tensor, hidden: torch.Tensor, *others: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`iaf_steps` of z ``(dim, num_samples, ...)``, of so many draws at once as fit the cache."""
    per_block = max(1, NUMBERS // (hidden.shape[1] * z[0, 0].numel()))
    parts = [iaf_steps(part, hidden, *others) for part in z.split(per_block, 1)]
    z, log_scale = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return z, log_scale


class IAFSteps(torch.autograd.Function):
    """`iaf_steps` of z ``(dim, num_data)`` and h ``(K, hidden_dim, num_data)``, a row each."""

    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        hidden: torch.Tensor,
        weight_in: torch.Tensor,
        weight_out: torch.Tensor,
        bias_out: torch.Tensor,
        clip: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_flows, (dim, num_data) = len(hidden), z.shape
        path = z.new_empty(num_flows + 1, dim, num_data)
        path[0] = z
        acts = torch.empty_like(hidden)
        out = z.new_empty(num_flows, 2 * dim, num_data)
        shifts, raws = out.split(dim, 1)
        scales = torch.empty_like(raws)
        given = (hidden, weight_in, weight_out, bias_out.unsqueeze(-1))
        of_layers = (*given, acts, out, shifts, raws, scales)
        layers = zip(pairwise(path.unbind()), *(t.unbind() for t in of_layers), strict=True)
        for (before, after), h, v, w, b, act, out_k, shift, raw, scale in layers:
            torch.addmm(h, v, before, out=act)
            torch.addmm(b, w, act.relu_(), out=out_k)
            if clip is None:
                torch.sigmoid(raw, out=scale)
                torch.lerp(shift, before, scale, out=after)
            else:
                torch.exp(raw.clamp(-clip, clip), out=scale)
                torch.addcmul(shift, scale, before, out=after)
        ctx.clip = clip
        ctx.save_for_backward(weight_in, weight_out, path, acts, out, scales)
        return path[-1].clone(), _log_scale(raws, scales, clip)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_z: torch.Tensor, grad_log_scale: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        weight_in, weight_out, path, acts, out, scales = ctx.saved_tensors
        clip, dim = ctx.clip, path.shape[1]
        grads = [torch.empty_like(t) for t in (acts, weight_in, weight_out)]
        grad_bias = out.new_empty(out.shape[:2])
        grad_out, of_raw = torch.empty_like(out[0]), torch.empty_like(path[0])
        grad_shift, grad_raw = grad_out.split(dim)
        grad = grad_z  # at a layer's output, from the last layer to the first
        shifts, raws = out.split(dim, 1)
        of_layers = (*grads, grad_bias, weight_in.mT, weight_out.mT, acts, shifts, raws, scales)
        steps = pairwise(reversed(path.unbind()))
        layers = zip(steps, *(reversed(t.unbind()) for t in of_layers), strict=True)
        for (after, before), h, g_v, g_w, g_b, v, w, act, shift, raw, scale in layers:
            if clip is None:
                torch.sub(1.0, scale, out=of_raw)
                torch.mul(grad, of_raw, out=grad_shift)
            else:
                torch.le(raw.abs(), clip, out=of_raw)
                grad_shift.copy_(grad)
            # z' changes with r by its slope times z' - mu, in either form
            torch.sub(after, shift, out=grad_raw)
            torch.addcmul(grad_log_scale, grad_raw, grad, out=grad_raw)
            grad_raw.mul_(of_raw)
            torch.mm(grad_out, act.T, out=g_w)
            torch.sum(grad_out, 1, out=g_b)
            torch.mm(w, grad_out, out=h)
            torch.ops.aten.threshold_backward(h, act, 0.0, grad_input=h)
            torch.mm(h, before.T, out=g_v)
            grad = (grad * scale).addmm_(v, h)
        return grad, *grads, grad_bias, None


def _log_scale(raws: torch.Tensor, scales: torch.Tensor, clip: float | None) -> torch.Tensor:
    """The sum of the layers' log-scales: gates share a logarithm, as in `BernoulliRow`."""
    if clip is not None:
        return raws.clamp(-clip, clip).sum(0)
    larger = torch.maximum(scales, 1.0 - scales)  # the sigmoid of |r|
    return raws.clamp(max=0.0).sum(0) + log_of_product(larger, 0)

r"""The arithmetic of IAF layers, and its gradient by hand: fewer and larger operations.

All tensors have the rows last, so that each coordinate's numbers lie side by side. With the
context's part h, a layer is

.. math::
    a = \max(0, V z + h), \quad (\mu, r) = W a + b, \quad
    z' = \mu + \sigma(r)\,(z - \mu) \text{ gated, or } z' = \mu + \exp(r)\,z

with a clipped r in the second form. The log-scales are :math:`\log\sigma(r)`, or r.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from pyro_vaeflow.programs.bernoulli import log_of_product
from pyro_vaeflow.programs.blocks import draws_of_a_block
from pyro_vaeflow.programs.operation import operation


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
    per_block = draws_of_a_block(hidden.shape[1] * z[0, 0].numel())
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
        z, log_scale, *kept = _iaf_forward(z, hidden, weight_in, weight_out, bias_out, clip)
        ctx.clip = clip
        ctx.save_for_backward(weight_in, weight_out, *kept)
        return z, log_scale

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_z: torch.Tensor, grad_log_scale: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        return *_iaf_backward(grad_z, grad_log_scale, *ctx.saved_tensors, ctx.clip), None


@operation
def _iaf_forward(
    z: torch.Tensor,
    hidden: torch.Tensor,
    weight_in: torch.Tensor,
    weight_out: torch.Tensor,
    bias_out: torch.Tensor,
    clip: float | None,
) -> list[torch.Tensor]:
    """The results of `iaf_steps`, then what `_iaf_backward` needs: path, acts, out and scales."""
    num_flows, (dim, num_data) = len(hidden), z.shape
    path = z.new_empty(num_flows + 1, dim, num_data)
    path[0] = z
    acts = torch.empty_like(hidden)
    out = z.new_empty(num_flows, 2, dim, num_data)
    shifts, raws = out.unbind(1)
    scales = torch.empty_like(raws)
    given = (hidden, weight_in, weight_out, bias_out.unsqueeze(-1))
    made = (path[1:], acts, out.flatten(1, 2), shifts, raws, scales)
    layers = zip(*(t.unbind() for t in (path[:-1], *given, *made)), strict=True)
    for before, h, v, w, b, after, act, out_k, shift, raw, scale in layers:
        torch.addmm(h, v, before, out=act).relu_()
        torch.addmm(b, w, act, out=out_k)
        if clip is None:
            torch.sigmoid(raw, out=scale)
            torch.lerp(shift, before, scale, out=after)
        else:
            torch.exp(raw.clamp(-clip, clip), out=scale)
            torch.addcmul(shift, scale, before, out=after)
    return [path[-1].clone(), _log_scale(raws, scales, clip), path, acts, out, scales]


@operation
def _iaf_backward(
    grad_z: torch.Tensor,
    grad_log_scale: torch.Tensor,
    weight_in: torch.Tensor,
    weight_out: torch.Tensor,
    path: torch.Tensor,
    acts: torch.Tensor,
    out: torch.Tensor,
    scales: torch.Tensor,
    clip: float | None,
) -> list[torch.Tensor]:
    """The gradients at z, h, V, W and b."""
    grads = [torch.empty_like(t) for t in (acts, weight_in, weight_out)]
    grad_bias = out.new_empty(weight_out.shape[:2])
    shifts, raws = out.unbind(1)
    # What comes from the layers behind, for z' and for r; then the gradients at mu and r.
    ahead, grad_out, of_raw = (torch.empty_like(t) for t in (out[0], out[0], scales[0]))
    (grad, grad_raw), flat = ahead, grad_out.flatten(0, 1)
    grad.copy_(grad_z)
    transposed = (weight_in.mT, weight_out.mT, acts.mT, path[:-1].mT)
    of_layers = (*grads, grad_bias, *transposed, path[1:], acts, shifts, raws, scales)
    layers = zip(*(reversed(t.unbind()) for t in of_layers), strict=True)
    for h, g_v, g_w, g_b, v, w, act_t, before_t, after, act, shift, raw, scale in layers:
        # z' changes with r by its slope times z' - mu, in either form
        torch.sub(after, shift, out=grad_raw)
        torch.addcmul(grad_log_scale, grad_raw, grad, out=grad_raw)
        if clip is None:
            torch.mul(ahead, torch.sub(1.0, scale, out=of_raw), out=grad_out)
        else:
            grad_raw.mul_(torch.le(raw.abs(), clip, out=of_raw))
            grad_out.copy_(ahead)
        torch.mm(flat, act_t, out=g_w)
        torch.sum(flat, 1, out=g_b)
        torch.mm(w, flat, out=h)
        torch.ops.aten.threshold_backward(h, act, 0.0, grad_input=h)
        torch.mm(h, before_t, out=g_v)
        grad.mul_(scale).addmm_(v, h)
    return [grad.clone(), *grads, grad_bias]  # a copy, lest all of `ahead` stays with it


def _log_scale(raws: torch.Tensor, scales: torch.Tensor, clip: float | None) -> torch.Tensor:
    """The sum of the layers' log-scales: gates share a logarithm, as in `BernoulliRow`."""
    if clip is not None:
        return raws.clamp(-clip, clip).sum(0)
    larger = torch.maximum(scales, 1.0 - scales)  # the sigmoid of |r|
    return raws.clamp(max=0.0).sum(0) + log_of_product(larger, 0)

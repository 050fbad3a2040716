r"""The arithmetic of planar layers, and its gradient by hand: fewer and larger operations.

All tensors have the rows last. With :math:`s = w^T u` and softplus :math:`m(s)`, a layer is

.. math::
    c = (m(s) - 1 - s) / |w|^2, \quad t = \tanh(w^T z + b), \quad z' = z + t\,(u + c\,w), \quad
    \log\det = \log(t^2 + (1 - t^2)\,m(s))

with :math:`m(s) = 1 + w^T \hat u > 0`: a sum of positive terms, exact where the usual form cancels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from pyro_vaeflow.programs.operation import operation


def planar_steps(z: torch.Tensor, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All layers one after another, and the sum of their log-determinants, nats.

    Args:
        z: ``(dim, ...)``.
        parameters: b, u, w of each layer, ``(K, 1 + 2 * dim, ...)``; its dimensions after the
            second broadcast with those of z after the first.
    """
    z = z.contiguous()  # else all layers would lie in memory as z does
    dim, tiny = len(z), torch.finfo(z.dtype).tiny
    missing = (1,) * (z.dim() - parameters.dim() + 1)
    parameters = parameters.reshape(*parameters.shape[:2], *missing, *parameters.shape[2:])
    bias, u, w = parameters.split((1, dim, dim), 1)
    along = (w * u).sum(1)
    slope = F.softplus(along)
    u_hat = u + ((slope - 1.0 - along) / (w.square().sum(1) + tiny)).unsqueeze(1) * w
    acts = []
    for b_k, u_k, w_k in zip(bias.unbind(), u_hat.unbind(), w.unbind(), strict=True):
        act = ((z * w_k).sum(0, keepdim=True) + b_k).tanh()
        z = torch.addcmul(z, u_k, act)
        acts.append(act)
    square = torch.cat(acts).square()
    return z, torch.log(square + (1.0 - square) * slope + tiny).sum(0)


class PlanarSteps(torch.autograd.Function):
    """`planar_steps` of z ``(dim, num_data)`` where each row has parameters of its own."""

    @staticmethod
    def forward(
        ctx: Any, z: torch.Tensor, parameters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        z, log_det, *kept = _planar_forward(z, parameters)
        ctx.save_for_backward(parameters, *kept)
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_z: torch.Tensor, grad_log_det: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return tuple(_planar_backward(grad_z, grad_log_det, *ctx.saved_tensors))


@operation
def _planar_forward(z: torch.Tensor, parameters: torch.Tensor) -> list[torch.Tensor]:
    """The results of `planar_steps`, then what `_planar_backward` needs."""
    dim, tiny = len(z), torch.finfo(z.dtype).tiny
    num_flows, num_data = len(parameters), z.shape[1]
    bias, u, w = parameters.split((1, dim, dim), 1)
    along, square_w = (w * u).sum(1), w.square().sum(1).add_(tiny)
    slope = F.softplus(along)
    shift = (slope - 1.0 - along).div_(square_w)
    path = z.new_empty(num_flows + 1, dim, num_data)
    path[0] = z
    acts, product = z.new_empty(num_flows, num_data), torch.empty_like(path[0])
    of_layers = (path[:-1].unbind(), path[1:].unbind(), acts.unbind(), bias[:, 0].unbind())
    for before, after, act, b_k, u_k, w_k, shift_k in zip(
        *of_layers, u.unbind(), w.unbind(), shift.unbind(), strict=True
    ):
        torch.mul(before, w_k, out=product)
        torch.sum(product, 0, out=act)
        act.add_(b_k).tanh_()
        torch.addcmul(before, u_k, act, out=after)
        after.addcmul_(w_k, act * shift_k)
    square = acts.square()
    det = torch.addcmul(square, 1.0 - square, slope).add_(tiny)
    log_det = det.log().sum(0)
    return [path[-1].clone(), log_det, path, acts, det, along, slope, shift, square_w]


@operation
def _planar_backward(
    grad_z: torch.Tensor,
    grad_log_det: torch.Tensor,
    parameters: torch.Tensor,
    path: torch.Tensor,
    acts: torch.Tensor,
    det: torch.Tensor,
    along: torch.Tensor,
    slope: torch.Tensor,
    shift: torch.Tensor,
    square_w: torch.Tensor,
) -> list[torch.Tensor]:
    """The gradients at z and the parameters."""
    dim = path.shape[1]
    _, u, w = parameters.split((1, dim, dim), 1)
    flat = 1.0 - acts.square()  # the slope of tanh
    of_det = grad_log_det / det
    of_act = (1.0 - slope).mul_(acts).mul_(of_det).mul_(2.0)
    ahead = torch.empty_like(path[1:])  # the gradient at each layer's output
    ahead[-1] = grad_z
    first = torch.empty_like(path[0])
    along_w = torch.empty_like(acts)  # g^T w
    product = torch.empty_like(first)
    for k in range(len(parameters) - 1, -1, -1):
        g, w_k, on_w = ahead[k], w[k], along_w[k]
        torch.mul(g, u[k], out=product)
        total = product.sum(0).add_(of_act[k])
        torch.mul(g, w_k, out=product)
        torch.sum(product, 0, out=on_w)
        total.addcmul_(on_w, shift[k]).mul_(flat[k])
        torch.addcmul(g, w_k, total, out=ahead[k - 1] if k else first)
        of_act[k] = total  # from here on the gradient of w^T z + b
    of_shift = along_w.mul_(acts).div_(square_w)
    of_along = torch.addcmul(of_shift, of_det, flat).mul_(along.sigmoid()).sub_(of_shift)
    grad = torch.empty_like(parameters)
    of_bias, of_u, of_w = grad.split((1, dim, dim), 1)
    of_bias.copy_(of_act.unsqueeze(1))
    torch.mul(ahead, acts.unsqueeze(1), out=of_u)
    torch.mul(of_u, shift.unsqueeze(1), out=of_w)
    of_u.addcmul_(w, of_along.unsqueeze(1))
    of_w.addcmul_(path[:-1], of_act.unsqueeze(1))
    of_w.addcmul_(u, of_along.unsqueeze(1))
    of_w.addcmul_(w, (of_shift * shift).mul_(-2.0).unsqueeze(1))
    return [first, grad]

"""All layers of a planar flow as one Pyro transform.

The same function as a stack of Pyro's ``Planar`` or ``ConditionalPlanar``, with one matrix product
for the parameters of all layers and what does not depend on z computed for all layers at once.
"""

import math

import torch
import torch.nn.functional as F
from pyro.distributions.conditional import ConditionalTransformModule
from torch import nn
from torch.distributions import Transform, constraints

from pyro_vaeflow.fused import FusedLayers


@torch.no_grad()
def start_near_identity(u: torch.Tensor, w: torch.Tensor, scale: float = 0.01) -> None:
    """Draws u and w anew, in place, so that layers are small shifts along w of norm ~1.

    From Pyro's start each layer contracts: fifty take 19 nats from a density in three dimensions.
    """
    u.normal_(0.0, scale / math.sqrt(u.shape[-1]))
    w.normal_(0.0, 1.0 / math.sqrt(w.shape[-1]))
    # w^T u_hat = softplus(w^T u) - 1 is 0, and the layer the identity, at log(e - 1).
    along = (w * u).sum(-1, keepdim=True)
    u.add_((math.log(math.e - 1.0) - along) * w / w.square().sum(-1, keepdim=True))


class ConditionalPlanarStack(ConditionalTransformModule):
    r"""K planar layers :math:`z_k = z_{k-1} + \hat u_k \tanh(w_k^T z_{k-1} + b_k)` given a context.

    A linear map of the context gives :math:`u_k, w_k, b_k` of all layers, the amortised parameters
    of the paper. :math:`\hat u_k` is u moved along w so that :math:`w^T \hat u > -1`.

    References:
        D. Rezende, S. Mohamed, Variational Inference with Normalizing Flows, 2015,
        arXiv:1505.05770, eq. (10)-(12) and appendix A.1.

    Args:
        input_dim: size of z.
        context_dim: size of the context.
        num_flows: K.
        init_scale: spread of u at the start; small, so that a deep stack starts near the identity.

    Example:
        >>> stack = ConditionalPlanarStack(input_dim=2, context_dim=3, num_flows=50)
        >>> transform = stack.condition(torch.randn(5, 3))
        >>> transform(torch.randn(100, 5, 2)).shape
        torch.Size([100, 5, 2])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self, input_dim: int, context_dim: int, num_flows: int, init_scale: float = 0.01
    ) -> None:
        super().__init__()
        self.sizes = (1, input_dim, input_dim)
        self.num_flows = num_flows
        self.parameter_map = nn.Linear(context_dim, num_flows * sum(self.sizes))
        with torch.no_grad():  # hardly dependent on the context at the start
            self.parameter_map.weight.mul_(init_scale)
            _, u, w = self._split(self.parameter_map.bias)
        start_near_identity(u, w, init_scale)

    def _split(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return flat.unflatten(-1, (self.num_flows, -1)).split(self.sizes, dim=-1)

    def condition(self, context: torch.Tensor) -> "PlanarStack":
        bias, u, w = self._split(self.parameter_map(context))
        return PlanarStack(bias.squeeze(-1), u, w)


class PlanarStack(Transform):
    """Planar layers with given parameters: bias ``(..., K)``, u and w ``(..., K, input_dim)``.

    Like Pyro's ``Planar`` it has no inverse: it scores the values that it has made.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, bias: torch.Tensor, u: torch.Tensor, w: torch.Tensor) -> None:
        super().__init__(cache_size=1)
        tiny = torch.finfo(w.dtype).tiny
        along = (w * u).sum(-1, keepdim=True)
        self.slope = F.softplus(along)  # 1 + w^T u_hat, positive
        self.bias, self.w = bias, w
        self.u_hat = u + (self.slope - 1.0 - along) * w / w.square().sum(-1, keepdim=True).add(tiny)

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        layers = zip(self.bias.unbind(-1), self.u_hat.unbind(-2), self.w.unbind(-2), strict=True)
        acts = []
        for bias, u_hat, w in layers:
            act = ((x * w).sum(-1) + bias).tanh()
            x = torch.addcmul(x, u_hat, act.unsqueeze(-1))
            acts.append(act)
        square = torch.stack(acts, -1).square()
        # 1 + (1 - t^2) w^T u_hat as a sum of positive terms: exact where the usual form cancels
        slope = self.slope.squeeze(-1)
        tiny = torch.finfo(x.dtype).tiny
        self._log_det = torch.log(square + (1.0 - square) * slope + tiny).sum(-1)
        return x

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        raise KeyError(
            "a planar flow has no inverse: it can score only the last value that it has sampled; "
            "to score arbitrary z use flow='iaf' or 'spline'"
        )

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x_old, y_old = self._cached_x_y
        if x is not x_old or y is not y_old:
            self(x)
        return self._log_det


class PlanarLayers(FusedLayers):
    """Pyro's ``Planar`` layers, run as one `PlanarStack`.

    Example:
        >>> from pyro.distributions.transforms import Planar
        >>> PlanarLayers(Planar(2) for _ in range(5))(torch.randn(100, 2)).shape
        torch.Size([100, 2])
    """

    def as_one(self) -> PlanarStack:
        parameters = zip(*((layer.bias, layer.u, layer.w) for layer in self.layers), strict=True)
        bias, u, w = (torch.stack(values) for values in parameters)
        return PlanarStack(bias.squeeze(-1), u, w)

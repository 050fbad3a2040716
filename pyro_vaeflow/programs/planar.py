"""All layers of a planar flow as one Pyro transform.

The same function as a stack of Pyro's ``Planar`` or ``ConditionalPlanar``, with one matrix product
for the parameters of all layers and what does not depend on z computed for all layers at once.
"""

import math

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import nn
from torch.distributions import Transform, constraints

from pyro_vaeflow.programs.fused import FusedLayers
from pyro_vaeflow.programs.planar_steps import PlanarSteps, planar_steps


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
            _, u, w = self.parameter_map.bias.unflatten(0, (num_flows, -1)).split(self.sizes, 1)
        start_near_identity(u, w, init_scale)

    def condition(self, context: torch.Tensor) -> "PlanarStack":
        # Layers first and rows last: then each layer's numbers lie side by side, rows in vectors.
        rows = context.reshape(-1, context.shape[-1])
        bias, weight = self.parameter_map.bias, self.parameter_map.weight
        flat = torch.addmm(bias.unsqueeze(-1), weight, rows.T)
        return PlanarStack(flat.view(self.num_flows, sum(self.sizes), *context.shape[:-1]))


class PlanarStack(Transform):
    """Planar layers whose b, u and w are one tensor ``(K, 1 + 2 * input_dim, ...)``, rows last.

    Like Pyro's ``Planar`` it has no inverse: it scores the values that it has made.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, parameters: torch.Tensor) -> None:
        super().__init__(cache_size=1)
        self.parameters = parameters

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        z, rows = x.movedim(-1, 0), self.parameters.shape[2:]
        if torch.is_grad_enabled() and z.dim() == 2 and z.shape[1:] == rows:
            z, self._log_det = PlanarSteps.apply(z, self.parameters)
        else:
            z, self._log_det = planar_steps(z, self.parameters)
        return z.movedim(0, -1)

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
        return PlanarStack(torch.cat([bias, u, w], -1))

"""A prior of z that training rows make: a normal around the encoding of each of some of them."""

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import nn
from torch.distributions import constraints

from pyro_vaeflow.inference.noise import row_hash
from pyro_vaeflow.validation import check_size

LEAST = -80.0  # nats below the largest term, where terms count for nothing
CACHED = 200_000  # numbers
FAR_OUT = 1e5  # nats: float32 resolves a hundredth of one there
BROAD_WEIGHT = 0.01  # of a wide normal in the mixture: rows far from all exemplars stay possible


class ExemplarMixture(TorchDistribution):
    r"""A mixture of normals of one width, :math:`\sum_m w_m N(z; c_m, h^2) + w_0 N(z; 0, b^2)`.

    ``MixtureSameFamily`` would hold a number for each draw, centre and dimension; here the squared
    distances to all centres come from one matrix product.

    Args:
        log_weights: ``batch_shape + (num_centres + 1,)``, the wide normal's last; not normalised.
        centres: ``(num_centres, latent_dim)``.
        width, broad: h and b, ``(latent_dim,)``.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(
        self,
        log_weights: torch.Tensor,
        centres: torch.Tensor,
        width: torch.Tensor,
        broad: torch.Tensor,
    ) -> None:
        self.log_weights = log_weights.log_softmax(-1)
        self.centres, self.width, self.broad = centres, width, broad
        super().__init__(log_weights.shape[:-1], centres.shape[-1:], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "ExemplarMixture":
        """The same mixture for a batch shape that its own broadcasts to."""
        new = self._get_checked_instance(ExemplarMixture, _instance)
        # They broadcast as they are; a weight for each draw and centre would be one more pass.
        new.log_weights = self.log_weights
        new.centres, new.width, new.broad = self.centres, self.width, self.broad
        shape = torch.Size(batch_shape)
        super(ExemplarMixture, new).__init__(shape, self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density of z ``(..., latent_dim)``, shape ``(...)``, nats."""
        middle = self.centres.mean(0)
        a, b = (value - middle) / self.width, (self.centres - middle) / self.width
        near_weights, far_weight = self.log_weights[..., :-1], self.log_weights[..., -1]
        # |a - b|^2 = |a|^2 - 2 a b + |b|^2, so that few passes go over (draws, centres).
        bias = near_weights - 0.5 * b.square().sum(-1)
        half_square = 0.5 * a.square().sum(-1)
        constant = self.width.log().sum() + 0.5 * a.shape[-1] * math.log(2.0 * math.pi)
        near = _log_sum(a, b, bias) - half_square - constant
        # So far from all centres the squares cancel to noise: only the wide normal is left.
        near = near.masked_fill(half_square > FAR_OUT, -math.inf)
        far = dist.Normal(0.0, self.broad).log_prob(value).sum(-1) + far_weight
        return torch.logaddexp(near, far)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        """Draws of z, ``sample_shape + batch_shape + (latent_dim,)``, without a gradient."""
        sums = self.log_weights.exp().cumsum(-1)
        shape = torch.Size((*sample_shape, *self.batch_shape, 1))
        # uniform and normal numbers: those that `RowNoise` knows how to give to each row
        chosen = torch.rand(shape, dtype=sums.dtype, device=sums.device) * sums[..., -1:]
        sums = sums.expand(*shape[:-1], -1).contiguous() if sums.dim() > 1 else sums
        which = torch.searchsorted(sums, chosen).squeeze(-1).clamp(max=len(self.centres))
        loc = torch.cat([self.centres, torch.zeros_like(self.centres[:1])])[which]
        is_far = (which == len(self.centres)).unsqueeze(-1)
        return torch.normal(loc, torch.where(is_far, self.broad, self.width))


class ExemplarPrior(nn.Module):
    r"""p(z) as a mixture around training rows, where the guide's encoder puts them.

    .. math:: 1.01\,p(z) = \frac1M \sum_m N(z; \mu(x_m), h^2) + 0.01\,N(z; 0, b^2)

    In training, each step takes a part of the rows, and a row is no exemplar of itself: the bound
    is a leave-one-out one, and the width h does not fall to 0. With a linear encoder and decoder
    the evidence is that of a kernel density estimate; training departs from it as far as the bound
    rises.

    References:
        S. Norouzi, D. Fleet, M. Norouzi, Exemplar VAE: Linking Generative Models, Nearest Neighbor
        Retrieval, and Data Augmentation, 2020, arXiv:2004.04795.
        J. Tomczak, M. Welling, VAE with a VampPrior, 2018, arXiv:1705.07120.

    Args:
        rows: training rows, ``(num_data, num_features)``.
        locate: from rows to the locations of their posteriors' base, ``(num_data, latent_dim)``:
            ``Guide.locate``. Its parameters stay the guide's, but the model depends on them: to
            train copies, copy the two programs together, ``deepcopy((model, guide))``; for
            `inference_gap`, which varies the guide alone, pass ``deepcopy(model)``.
        latent_dim: size of z.
        max_exemplars: of more rows, so many are drawn; a score's cost grows with it.
        per_step: exemplars of a training step.

    Example:
        >>> from pyro_vaeflow import Guide, Model
        >>> x = torch.rand(100, 3)
        >>> guide = Guide(3, latent_dim=2)
        >>> model = Model(3, latent_dim=2, prior=ExemplarPrior(x, guide.locate, latent_dim=2))
        >>> model(x).shape
        torch.Size([100, 3])
    """

    rows: torch.Tensor

    def __init__(
        self,
        rows: torch.Tensor,
        locate: Callable[[torch.Tensor], torch.Tensor],
        latent_dim: int,
        max_exemplars: int = 2000,
        per_step: int = 512,
    ) -> None:
        super().__init__()
        check_size("max_exemplars", max_exemplars)
        check_size("per_step", per_step)
        self.locate = locate  # a bound method: not a submodule, whose parameters would be ours too
        self.max_exemplars, self.per_step = max_exemplars, per_step
        self.log_width = nn.Parameter(torch.full((latent_dim,), math.log(0.5)))
        self.log_broad = nn.Parameter(torch.full((latent_dim,), math.log(3.0)))
        self.register_buffer("rows", rows[:0])
        self.remember(rows)

    def remember(self, rows: torch.Tensor) -> None:
        """Takes `rows` as the exemplars from now on, at most `max_exemplars` of them, drawn."""
        if not len(rows):
            raise ValueError("rows must hold at least one exemplar, got none")
        self.rows = rows[torch.randperm(len(rows))[: self.max_exemplars]]

    def forward(self, x: torch.Tensor) -> ExemplarMixture:
        """The prior of the rows `x`; they differ in it only while training."""
        rows = self.rows
        if self.training:
            rows = rows[torch.randperm(len(rows))[: self.per_step]]
            is_other = row_hash(x)[:, None] != row_hash(rows)  # by content: a copy is no other row
            near = is_other.to(x.dtype)
        else:
            near = x.new_ones(len(rows))
        far = x.new_full((*near.shape[:-1], 1), BROAD_WEIGHT * len(rows))
        scales = self.log_width.exp(), self.log_broad.exp()
        return ExemplarMixture(torch.cat([near, far], -1).log(), self.locate(rows), *scales)


def _log_sum(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``(a @ b.T + bias).logsumexp(-1)``, in a fraction of the time where no gradient is needed.

    torch's exp is slow where its result underflows, hence the clamp; and blocks of rows that stay
    in the processor's cache hardly wait for memory.
    """
    if torch.is_grad_enabled() or bias.dim() > 1:
        products = a @ b.T + bias
        top = products.detach().amax(-1, keepdim=True).clamp(min=-1e30)  # not -inf - -inf
        return (products - top).clamp(min=LEAST).exp().sum(-1).log() + top.squeeze(-1)
    sums = []
    for block in a.reshape(-1, a.shape[-1]).split(max(1, CACHED // len(b))):
        products = F.linear(block, b, bias)
        top = products.amax(-1, keepdim=True)
        total = products.sub_(top).clamp(min=LEAST).exp_().sum(-1)
        sums.append(total.log_().add_(top.squeeze(-1)))
    return torch.cat(sums).view(a.shape[:-1])

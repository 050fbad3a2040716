"""Likelihood heads: from the decoder's last hidden layer to p(x | z), a Distribution over a row.

A head is a module ``Head(hidden_dim, num_features)``; called with ``h``, shape
``(..., hidden_dim)``, it returns a Pyro distribution of event shape ``(num_features,)``. To add
one: ``LIKELIHOODS["mine"] = MyHead``.
"""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vaeflow.programs.mixed import MixedHead, degrees_of_freedom, with_tails
from pyro_vaeflow.validation import check_number

FACTORS = 120  # of at least 1/2, which single precision can multiply before taking a logarithm


class BernoulliRow(dist.Independent):
    r"""``Bernoulli(logits=l).to_event(1)``, scored with a hundredth of the logarithms.

    .. math:: \log p(x) = \sum_j (x_j - \tfrac12)\, l_j - \tfrac12 |l_j| + \log \sigma(|l_j|)

    The factors of the last term lie in [1/2, 1]: 120 of them are multiplied and share a logarithm.

    Example:
        >>> row = BernoulliRow(dist.Bernoulli(logits=torch.zeros(3), validate_args=False), 1)
        >>> row.log_prob(torch.tensor([0.0, 1.0, 1.0])).exp()
        tensor(0.1250)
    """

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log probability of rows ``(..., num_features)``, summed over the columns, nats."""
        if torch.is_grad_enabled():
            return super().log_prob(value)
        logits = self.base_dist.logits
        size = logits.abs()
        # column by column: sums of large numbers would leave their rounding errors
        twice = torch.addcmul(size, logits, 1.0 - 2.0 * value).sum(-1)
        products = [part.prod(-1) for part in size.sigmoid_().split(FACTORS, -1)]
        return torch.stack(products).log().sum(0) - 0.5 * twice


class BernoulliHead(nn.Module):
    r"""Columns in [0, 1] as Bernoulli means: :math:`\sum_j x_j \log p_j + (1 - x_j)\log(1 - p_j)`.

    The paper's likelihood of min-max scaled columns. For columns that are not binary it is no
    density (its integral is not 1), so its nats compare models of one encoding only.

    Example:
        >>> BernoulliHead(8, 3)(torch.zeros(5, 8)).log_prob(torch.rand(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, hidden_dim: int, num_features: int) -> None:
        super().__init__()
        self.logits = nn.Linear(hidden_dim, num_features)

    def forward(self, h: torch.Tensor) -> TorchDistribution:
        """p(x | z), rows of ``(..., num_features)``, of hidden layers ``(..., hidden_dim)``."""
        return BernoulliRow(dist.Bernoulli(logits=self.logits(h), validate_args=False), 1)


class NormalHead(nn.Module):
    r"""Independent normal columns, means from z, one learned scale a column.

    Columns should be standardised: the scale starts at `start_scale` above `min_scale`, and stays
    above it, because on a column that the decoder fits exactly the likelihood has no maximum.

    Example:
        >>> NormalHead(8, 3)(torch.zeros(5, 8)).log_prob(torch.rand(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self, hidden_dim: int, num_features: int, min_scale: float = 1e-3, start_scale: float = 1.0
    ) -> None:
        super().__init__()
        check_number("start_scale", start_scale, above=0.0)
        self.loc = nn.Linear(hidden_dim, num_features)
        self.log_scale = nn.Parameter(torch.full((num_features,), math.log(start_scale)))
        self.min_scale = min_scale

    def forward(self, h: torch.Tensor) -> TorchDistribution:
        """p(x | z), rows of ``(..., num_features)``, of hidden layers ``(..., hidden_dim)``."""
        scale = self.log_scale.exp() + self.min_scale
        return dist.Normal(self.loc(h), scale).to_event(1)


class StudentTHead(NormalHead):
    r"""As `NormalHead`, with tails of their own: Student's t, degrees of freedom learned a column.

    An entry far out costs the logarithm of its distance and not the square, so that a few of them
    in the training rows do not widen the scale for all.

    Example:
        >>> StudentTHead(8, 3)(torch.zeros(5, 8)).log_prob(torch.rand(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, hidden_dim: int, num_features: int, **options: float) -> None:
        super().__init__(hidden_dim, num_features, **options)
        self.log_df = degrees_of_freedom(num_features)

    def forward(self, h: torch.Tensor) -> TorchDistribution:
        """p(x | z), rows of ``(..., num_features)``, of hidden layers ``(..., hidden_dim)``."""
        return with_tails(super().forward(h).base_dist, self.log_df).to_event(1)


LIKELIHOODS: dict[str, Callable[..., nn.Module]] = {
    "bernoulli": BernoulliHead,
    "normal": NormalHead,
    "student_t": StudentTHead,
    "mixed": MixedHead,
}

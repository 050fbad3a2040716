"""Rows' densities while they are scored: the same numbers in less time where no gradient is needed.

Scoring takes hundreds of draws a row. Its large tensors are worked on block after block of draws,
which stay in the processor's cache, and densities take few passes over them. With a gradient, as in
training, everything here is Pyro's and torch's own.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

NUMBERS = 2**18  # of the widest layer in a block, for each thread: 1 MiB of float32
FACTORS = 120  # of at least 1/2, which single precision can multiply before taking a logarithm


def draws_of_a_block(numbers: int) -> int:
    """How many draws fit the processor's cache, each with so many numbers in its widest layer."""
    return max(1, NUMBERS * torch.get_num_threads() // numbers)


class BernoulliRow(dist.Independent):
    r"""``Bernoulli(logits=l).to_event(1)``, with a hundredth of the logarithms.

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


class NormalRow(dist.Independent):
    """``Normal(loc, scale).to_event(1)``, with a row's constants worked out once for all draws.

    Example:
        >>> row = NormalRow(dist.Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> row.log_prob(torch.zeros(2)).exp()
        tensor(0.1592)
    """

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log probability of rows ``(..., num_features)``, summed over the columns, nats."""
        if torch.is_grad_enabled():
            return super().log_prob(value)
        loc, scale = _without_copies(self.base_dist.loc), _without_copies(self.base_dist.scale)
        square = ((value - loc) / scale).square().sum(-1)
        constant = scale.log().sum(-1) + 0.5 * scale.shape[-1] * math.log(2.0 * math.pi)
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        return (-0.5 * square - constant).expand(batch)


def _without_copies(values: torch.Tensor) -> torch.Tensor:
    """Values of columns without the copies that `expand` has made of them."""
    copied = [stride == 0 for stride in values.stride()[:-1]]
    return values[tuple(slice(0, 1) if copy else slice(None) for copy in copied)]


def in_blocks(
    decode: Callable[[torch.Tensor], TorchDistribution], z: torch.Tensor, width: int, features: int
) -> TorchDistribution:
    """p(x | z) for z ``(..., latent_dim)``: as `decode` has it, or `InBlocks` for draws to score.

    `width` is that of the widest layer behind `decode`, `features` the columns of a row.
    """
    per_block = draws_of_a_block(width * z[0].numel() // z.shape[-1]) if z.dim() > 2 else 0
    if torch.is_grad_enabled() or not 0 < per_block < len(z):
        return decode(z)
    return InBlocks(decode, z, per_block, torch.Size([features]))


class InBlocks(TorchDistribution):
    """What `decode` makes of z ``(num_samples, ...)``, of `per_block` samples at a time."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(
        self,
        decode: Callable[[torch.Tensor], TorchDistribution],
        z: torch.Tensor,
        per_block: int,
        event_shape: torch.Size,
    ) -> None:
        self.decode, self.z, self.per_block = decode, z, per_block
        super().__init__(z.shape[:-1], event_shape, validate_args=False)

    @property
    def blocks(self) -> Iterator[TorchDistribution]:
        """The distributions of the blocks, one after another."""
        return map(self.decode, self.z.split(self.per_block))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([block.log_prob(value) for block in self.blocks])

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "InBlocks":
        z = self.z.expand(*batch_shape, self.z.shape[-1])
        return InBlocks(self.decode, z, self.per_block, self.event_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        return self.decode(self.z).sample(sample_shape)

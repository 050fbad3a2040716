"""A distribution given z that is worked out block after block of draws, while it is scored.

A chunk's hidden layers and logits together are far larger than a processor's cache. Block by block
they stay in it, and memory does not depend on the number of draws.
"""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

from pyro_vaeflow.inference.contributions import feature_log_prob

NUMBERS = 2**18  # of the widest layer in a block, for each thread: 1 MiB of float32


def draws_of_a_block(numbers: int) -> int:
    """How many draws fit the processor's cache, each with so many numbers in its widest layer."""
    return max(1, NUMBERS * torch.get_num_threads() // numbers)


class InBlocks(TorchDistribution):
    """What `decode` makes of all of z, made of some draws at a time when it is asked.

    Args:
        decode: from z ``(..., latent_dim)`` to a distribution of batch shape ``(...)``.
        z: ``(num_samples, ..., latent_dim)``.
        per_block: draws of a block.
        event_shape: of what `decode` makes.
    """

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

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.decode(z).log_prob(value) for z in self.z.split(self.per_block)])

    def feature_log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p(value_j) of each feature, shape ``(..., num_features)``, nats."""
        blocks = self.z.split(self.per_block)
        return torch.cat([feature_log_prob(self.decode(z), value) for z in blocks])

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "InBlocks":
        z = self.z.expand(*batch_shape, self.z.shape[-1])
        return InBlocks(self.decode, z, self.per_block, self.event_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> torch.Tensor:  # noqa: B008
        return self.decode(self.z).sample(sample_shape)


def in_blocks(
    decode: Callable[[torch.Tensor], TorchDistribution], z: torch.Tensor, width: int, features: int
) -> TorchDistribution:
    """The distribution of rows given z: at once in training, in blocks of draws in scoring.

    Args:
        width: of the widest layer behind it.
        features: columns of a row.
    """
    per_block = draws_of_a_block(width * z[0].numel() // z.shape[-1]) if z.dim() > 2 else 0
    if torch.is_grad_enabled() or not 0 < per_block < len(z):
        return decode(z)
    return InBlocks(decode, z, per_block, torch.Size([features]))

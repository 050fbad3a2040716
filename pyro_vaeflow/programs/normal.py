"""Rows of normal columns whose log probability is cheap where no gradient is needed."""

import math

import pyro.distributions as dist
import torch


class NormalRow(dist.Independent):
    r"""``Normal(loc, scale).to_event(1)``, the same numbers in less time.

    torch's own takes the logarithm and the square of the scale anew for each draw, and eight passes
    over the columns.

    Example:
        >>> row = NormalRow(dist.Normal(torch.zeros(2), torch.ones(2)), 1)
        >>> row.log_prob(torch.zeros(2)).exp()
        tensor(0.1592)
    """

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log probability of rows, summed over the columns, nats."""
        if torch.is_grad_enabled():
            return super().log_prob(value)
        loc, scale = _once(self.base_dist.loc), _once(self.base_dist.scale)
        square = ((value - loc) / scale).square().sum(-1)
        constant = scale.log().sum(-1) + 0.5 * scale.shape[-1] * math.log(2.0 * math.pi)
        return -0.5 * square - constant


def _once(values: torch.Tensor) -> torch.Tensor:
    """Values of columns without the copies that `expand` has made of them."""
    copied = [stride == 0 for stride in values.stride()[:-1]]
    return values[tuple(slice(0, 1) if copy else slice(None) for copy in copied)]

"""Rows of Bernoulli columns whose log probability takes a third of the passes over the columns."""

from typing import Any

import pyro.distributions as dist
import torch

GROUP = 120  # factors of at least 1/2 that are multiplied before their logarithm is taken


def log_of_product(factors: torch.Tensor, dim: int) -> torch.Tensor:
    """The sum of the logarithms of factors in [1/2, 1] along `dim`, of which few are taken."""
    logs = [part.prod(dim).log() for part in factors.split(GROUP, dim)]
    return sum(logs[1:], start=logs[0])


class BernoulliRow(dist.Independent):
    r"""``Bernoulli(logits=l).to_event(1)``, the same numbers in less time.

    .. math:: \log p(x) = \sum_j (x_j - \tfrac12)\, l_j - \tfrac12 |l_j| + \log \sigma(|l_j|)

    The factors of the last term lie in [1/2, 1], so 120 of them can be multiplied and share
    one logarithm: as a sigmoid costs half an exponential in torch, and a logarithm two, this is
    what makes the difference.

    Example:
        >>> row = BernoulliRow(dist.Bernoulli(logits=torch.zeros(3), validate_args=False), 1)
        >>> row.log_prob(torch.tensor([0.0, 1.0, 1.0])).exp()
        tensor(0.1250)
    """

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log probability of rows, summed over the columns, nats."""
        log_prob = _LogProb.apply if torch.is_grad_enabled() else _LogProb.forward
        return log_prob(self.base_dist.logits, value)


class _LogProb(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        size = logits.abs()
        # column by column: sums of large numbers would leave their rounding errors
        twice = torch.addcmul(size, logits, 1.0 - 2.0 * value).sum(-1)
        return log_of_product(size.sigmoid_(), -1) - 0.5 * twice

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        logits, value = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        of_logits = (value - logits.sigmoid()) * grad if ctx.needs_input_grad[0] else None
        of_value = (logits * grad).sum_to_size(value.shape) if ctx.needs_input_grad[1] else None
        return of_logits, of_value

r"""Figures of two sets of a row's draws, as those of all of them: pure tensor mathematics.

K, the log evidence and the effective sample size know the sums :math:`\sum_k w_k` and
:math:`\sum_k w_k^2`, so that draws can go on where they stopped and no weight is kept for it. Of
k-hat's fit the largest weights are enough.
"""

import torch

from pyro_vaeflow.inference.psis import tail_size

Pair = tuple[torch.Tensor, torch.Tensor]  # one set of draws and the other


def pooled_mean(num_samples: Pair, mean: Pair) -> torch.Tensor:
    """The mean over both sets, ``(num_data,)``."""
    one, other = (n.to(m.dtype) for n, m in zip(num_samples, mean, strict=True))
    return (one * mean[0] + other * mean[1]) / (one + other)


def pooled_evidence(
    num_samples: Pair, log_evidence: Pair, ess: Pair
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Log evidence, its standard error and effective sample size of both sets, ``(num_data,)``.

    With :math:`\sum_k w_k^2 = (\sum_k w_k)^2 / \mathrm{ESS}`; the formulas, and the values of rows
    without a finite weight, are those of `pyro_vaeflow.inference.importance`.

    Args:
        num_samples: K of each set.
        log_evidence: nats.
        ess: draws.

    Example:
        >>> from pyro_vaeflow.inference import importance
        >>> log_weight = torch.randn(30, 4, dtype=torch.float64)
        >>> sets = log_weight.split([10, 20])
        >>> counts = tuple(torch.full((4,), len(part)) for part in sets)
        >>> evidence, ess = (tuple(f(part) for part in sets)
        ...                  for f in (importance.log_evidence, importance.effective_sample_size))
        >>> stderr = pooled_evidence(counts, evidence, ess)[1]
        >>> torch.allclose(stderr, importance.log_evidence_stderr(log_weight))
        True
    """
    counts = [n.double() for n in num_samples]
    total = counts[0] + counts[1]
    sums = [v.double() + n.log() for v, n in zip(log_evidence, counts, strict=True)]
    # No finite weight: both sums are zero, where -inf - (-inf) would be nan.
    squares = [
        torch.where(s == -torch.inf, s, 2.0 * s - e.double().log())
        for s, e in zip(sums, ess, strict=True)
    ]
    log_sum, log_square = torch.logaddexp(*sums), torch.logaddexp(*squares)
    none = log_sum == -torch.inf
    pooled = torch.where(none, 0.0, (2.0 * log_sum - log_square).exp())
    excess = (total / pooled - 1.0).clamp(min=0.0)  # rounding can take it below
    stderr = torch.where(none, torch.inf, (excess / (total - 1.0)).sqrt())
    dtype = log_evidence[0].dtype
    return (log_sum - total.log()).to(dtype), stderr.to(dtype), pooled.to(dtype)


def largest_of(log_weight: torch.Tensor, max_samples: int) -> torch.Tensor:
    """The log weights that k-hat's fit may need of at most `max_samples` draws, ``(n, rows)``."""
    return log_weight.topk(min(tail_size(max_samples) + 1, len(log_weight)), dim=0).values

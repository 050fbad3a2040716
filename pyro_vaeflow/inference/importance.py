r"""Pure tensor mathematics on log weights: evidence, standard error, effective sample size, k-hat.

A log weight is :math:`\log w_k = \log p(x, z_k) - \log q(z_k|x)` with :math:`z_k \sim q(z|x)`, in
nats; every function takes K of them for each row, shape ``(num_samples, num_data)``, and knows
nothing of the programs that made them. A log weight of -inf is a weight of zero and is allowed; one
that is nan or +inf makes its row's results nan (the evidence of +inf alone is +inf). What is not a
floating tensor of that shape is refused: a TypeError or ValueError.
"""

import math

import torch

from pyro_vaeflow.inference.psis import check_log_weight, khat

__all__ = [
    "KHAT_LIMIT",
    "effective_sample_size",
    "estimate",
    "khat",
    "log_evidence",
    "log_evidence_stderr",
]

KHAT_LIMIT = 0.7  # Vehtari et al. 2024: above it more draws hardly help


def log_evidence(log_weight: torch.Tensor) -> torch.Tensor:
    r"""The importance-sampled log p(x) of each row, shape ``(num_data,)``, nats.

    .. math:: \log \frac1K \sum_k w_k

    The mean is unbiased for p(x), so by Jensen's inequality its logarithm is biased low, by about
    half the squared standard error; it rises to log p(x) with K. Differentiable, as a training
    bound must be. ``-inf`` where every weight is zero.

    References:
        Y. Burda, R. Grosse, R. Salakhutdinov, Importance Weighted Autoencoders, 2016,
        arXiv:1509.00519.

    Example:
        >>> log_evidence(torch.tensor([[1.0, 3.0], [3.0, 1.0]]).log()).exp()
        tensor([2., 2.])
    """
    check_log_weight(log_weight)
    return log_weight.logsumexp(0) - math.log(len(log_weight))


@torch.no_grad()
def log_evidence_stderr(log_weight: torch.Tensor) -> torch.Tensor:
    r"""The standard error of the log evidence of each row, shape ``(num_data,)``, nats.

    By the delta method, the relative standard error of the mean weight, with the unbiased variance:

    .. math:: \frac1{\bar w} \sqrt{\frac{\sum_k (w_k - \bar w)^2}{K (K - 1)}}
        = \sqrt{\frac{K / \mathrm{ESS} - 1}{K - 1}}

    Never above 1, which it reaches when one weight holds all: believe it where it is small and
    `khat` is below 0.7. 0 for equal weights, ``nan`` for K = 1, ``inf`` if every weight is zero.

    References:
        A. B. Owen, Monte Carlo theory, methods and examples, 2013, sections 2.8 and 9.2.

    Example:
        >>> log_evidence_stderr(torch.tensor([[1.0, 2.0], [3.0, 2.0]]).log())
        tensor([0.5000, 0.0000])
    """
    weight = _relative_weights(log_weight)
    num_samples = len(weight)
    if num_samples == 1:
        return torch.full_like(weight[0], math.nan)
    mean = weight.mean(0)
    variance = (weight - mean).square().sum(0) / (num_samples - 1)
    return torch.where(mean == 0, math.inf, (variance / num_samples).sqrt() / mean)


@torch.no_grad()
def effective_sample_size(log_weight: torch.Tensor) -> torch.Tensor:
    r"""How many equally weighted draws each row's weights are worth, shape ``(num_data,)``, draws.

    .. math:: \frac{(\sum_k w_k)^2}{\sum_k w_k^2}

    Between 1 and K; 0 where every weight is zero.

    References:
        A. Kong, A Note on Importance Sampling using Standardized Weights, 1992, University of
        Chicago, Department of Statistics, Technical Report 348.

    Example:
        >>> effective_sample_size(torch.tensor([[1.0, 0.0], [1.0, 1.0]]).log())
        tensor([2., 1.])
    """
    weight = _relative_weights(log_weight)
    total = weight.sum(0)
    return torch.where(total == 0, 0.0, total.square() / weight.square().sum(0))


def estimate(log_weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The log evidence of each row and what it is worth, each ``(num_data,)``, by name.

    Example:
        >>> list(estimate(torch.zeros(50, 2)))
        ['log_evidence', 'stderr', 'ess', 'khat', 'num_samples']
    """
    return {
        "log_evidence": log_evidence(log_weight),
        "stderr": log_evidence_stderr(log_weight),
        "ess": effective_sample_size(log_weight),
        "khat": khat(log_weight),
        "num_samples": torch.full(log_weight.shape[1:], len(log_weight), device=log_weight.device),
    }


def _relative_weights(log_weight: torch.Tensor) -> torch.Tensor:
    """The weights over the largest of their row, so that none overflows and one is exactly 1."""
    check_log_weight(log_weight)
    top = log_weight.max(0).values
    return (log_weight - torch.where(top == -math.inf, 0.0, top)).exp()

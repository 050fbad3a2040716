r"""The tail index k-hat of importance weights, of all rows at once.

The n largest of a row's K weights, less the next largest (the cutoff), are taken as draws from a
generalised Pareto distribution with density
:math:`\sigma^{-1} (1 + k x / \sigma)^{-1/k - 1}`. With :math:`b = -k / \sigma` the likelihood has a
profile in b alone, :math:`k(b) = \frac1n \sum_i \log(1 - b x_i)`, and b is its posterior mean on a
data-dependent grid of :math:`30 + \lfloor\sqrt n\rfloor` points: no iteration, so rows go in one
batch. The rest follows ``arviz_stats.base.array_stats.psislw`` at ``r_eff=1``, importance draws
being independent: n = floor(K / 5) up to K = 225, floor(3 sqrt(K)) above; and the reported k is
drawn towards 1/2 by a prior worth 10 tail draws, (n k + 5) / (n + 10).

References:
    J. Zhang, M. A. Stephens, A New and Efficient Estimation Method for the Generalized Pareto
    Distribution, Technometrics 51(3), 2009.
    A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, Pareto Smoothed Importance Sampling, 2024,
    arXiv:1507.02646.
"""

import math

import torch

# Elements of one (rows, grid, tail) block, 32 MiB of float64. Blocks that fit the cache were no
# faster on one thread and, with the cores shared, many times slower on two: each operation waits
# for the slower thread, so few and large ones it is.
_BLOCK = 2**22
# Below this share of the largest weight an excess counts as zero: the grid would overflow.
_NEGLIGIBLE = 1e-300


def check_log_weight(log_weight: torch.Tensor) -> None:
    """Raises unless `log_weight` is a floating tensor ``(num_samples, num_data)`` with a draw."""
    if not isinstance(log_weight, torch.Tensor) or not log_weight.is_floating_point():
        what = getattr(log_weight, "dtype", type(log_weight).__name__)
        raise TypeError(f"log_weight must be a floating-point torch.Tensor, got {what}")
    if log_weight.dim() != 2 or log_weight.shape[0] == 0:
        raise ValueError(
            "log_weight must have shape (num_samples, num_data) with num_samples >= 1, got "
            f"{tuple(log_weight.shape)}; for a single row pass log_weight.reshape(-1, 1)"
        )


@torch.no_grad()
def khat(log_weight: torch.Tensor) -> torch.Tensor:
    r"""The Pareto tail index of each row's weights, shape ``(num_data,)``, no unit.

    Below 0.7 the log evidence and its standard error can be used; above, the draws that matter most
    have probably not been seen. It measures the draws that were seen: a mode that q misses
    altogether leaves no trace. It does not depend on the scale of the weights.

    Rows without a fit have these values:

    - ``nan``: fewer than 5 tail draws (K < 25; arviz raises), or a log weight that is nan or +inf;
    - ``-inf``: the n largest weights are equal (arviz raises), as under an exact guide: no tail.
      Equal means to the square root of the precision of the dtype, 3.5e-4 nats in float32 and
      1.5e-8 in float64, since closer weights are ranked by rounding;
    - ``inf``: a quarter of the tail is on the cutoff or below 1e-300 of the largest weight, as
      where most weights are zero (log weight -inf) or differ by hundreds of nats. arviz returns
      5 / (n + 10) there, which reads as trustworthy.

    Args:
        log_weight: shape ``(num_samples, num_data)``, nats; computed on in float64, in blocks.

    Raises:
        TypeError, ValueError: `log_weight` is not a floating tensor of that shape.

    Example:
        >>> uniform = (torch.arange(1000.0, dtype=torch.float64) + 0.5) / 1000
        >>> log_weight = torch.stack([-0.9 * uniform.log(), 0 * uniform], dim=1)  # true k: 0.9
        >>> [round(k, 2) for k in khat(log_weight).tolist()]
        [0.84, -inf]
    """
    check_log_weight(log_weight)
    size = tail_size(len(log_weight))
    out = log_weight.new_full(log_weight.shape[1:], math.nan)
    if size >= 5:
        step = max(1, _BLOCK // max(_grid_size(size) * size, len(log_weight)))
        for start in range(0, len(out), step):
            rows = slice(start, start + step)
            out[rows] = _fit(log_weight[:, rows], size).to(out.dtype)
    return out


def tail_size(num_samples: int) -> int:
    """How many of a row's largest weights are the tail that `khat` is fitted to."""
    return math.floor(3 * math.sqrt(num_samples)) if num_samples > 225 else num_samples // 5


def _grid_size(size: int) -> int:
    return 30 + math.isqrt(size)


def _fit(log_weight: torch.Tensor, size: int) -> torch.Tensor:
    """The index of the `size` largest weights of each row of a ``(num_samples, rows)`` block."""
    rounding = torch.finfo(log_weight.dtype).eps ** 0.5
    largest = log_weight.T.contiguous().topk(size + 1).values.double()  # (rows, n + 1), falling
    top = largest[:, 0]
    relative = largest - top.unsqueeze(-1)
    value, cutoff = relative[:, :size], relative[:, size]
    # w - c without the cancellation of exp(value) - exp(cutoff); both -inf: no excess
    gap = torch.where(value == -math.inf, 0.0, cutoff.unsqueeze(-1) - value)
    x = value.exp() * -torch.expm1(gap)

    quartile = x[:, size - int(size / 4 + 0.5)]
    grid = _grid_size(size)
    places = torch.arange(grid, dtype=torch.float64, device=x.device) + 0.5
    b = (1 - (grid / places).sqrt()) / (3 * quartile.unsqueeze(-1)) + 1 / x[:, :1]  # (rows, grid)
    # log(1 - b x), (rows, grid, n), is the cost of the fit: one buffer, in place
    k = (-b.unsqueeze(-1) * x.unsqueeze(-2)).log1p_().mean(-1)
    profile = size * ((-b / k).log() - k - 1)
    b = (b * profile.softmax(-1)).sum(-1)
    k = torch.log1p(-b.unsqueeze(-1) * x).mean(-1)
    k = (size * k + 5) / (size + 10)

    level = value[:, -1] >= -rounding
    k = torch.where(quartile < _NEGLIGIBLE, math.inf, k)
    k = torch.where(level, -math.inf, k)
    k = torch.where(top == -math.inf, math.inf, k)
    return torch.where(top < math.inf, k, math.nan)  # topk puts nan first

"""Distinct rows of a tensor: scored once, and drawn in training by a power of their number."""

import torch


def distinct_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The distinct rows, which of them each row is, and how many it is; missing equals missing.

    Args:
        x: rows ``(num_data, num_columns)``.

    Returns:
        ``(num_distinct, num_columns)``, places ``(num_data,)`` and counts ``(num_distinct,)``.
    """
    shown = x.nan_to_num(nan=torch.inf, posinf=torch.inf)  # NaN would be no row's equal
    distinct, place, counts = torch.unique(shown, dim=0, return_inverse=True, return_counts=True)
    return distinct.masked_fill(distinct == torch.inf, torch.nan), place, counts


def training_rows(x: torch.Tensor, count_power: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows to draw from and their weights: distinct ones, in an order drawn anew, or all alike.

    Example:
        >>> rows, weights = training_rows(torch.tensor([[1.0], [2.0], [1.0], [1.0], [1.0]]), 0.5)
        >>> dict(zip(rows.squeeze(1).tolist(), weights.tolist()))[1.0]
        2.0
    """
    if count_power == 1.0:
        return x, None
    distinct, _, counts = distinct_rows(x)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0))
    return distinct[order], counts[order].double() ** count_power

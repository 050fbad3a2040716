"""Student's t in place of normals: columns whose tails are learned."""

import math

import pyro.distributions as dist
import torch
from torch import nn

LEAST_DF = 1.0  # degrees of freedom: below it there is no mean
START_DF = 4.0


def degrees_of_freedom(num_features: int) -> nn.Parameter:
    """A parameter a column, ``(num_features,)``, for `with_tails`."""
    return nn.Parameter(torch.full((num_features,), math.log(START_DF - LEAST_DF)))


def with_tails(normal: dist.Normal, log_df: torch.Tensor) -> dist.StudentT:
    r"""Student's t of the normal's location and scale, :math:`1 + e^{log\_df}` degrees of freedom.

    Example:
        >>> normal = dist.Normal(torch.zeros(2), torch.ones(2))
        >>> far = torch.tensor([0.0, 100.0])
        >>> with_tails(normal, degrees_of_freedom(2)).log_prob(far)[1] > normal.log_prob(far)[1]
        tensor(True)
    """
    df = LEAST_DF + log_df.exp()
    return dist.StudentT(df, normal.loc, normal.scale, validate_args=False)

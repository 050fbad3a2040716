r"""A potential as a Pyro program, and an unconditional flow as its guide.

A guide alone stands before a known two-dimensional density :math:`p(z) = e^{-U(z)} / Z`: no
decoder, no encoder, nothing but the flexibility of the posterior. The program has one independent
draw of z a row, so `train` and `score` work on it, and

.. math:: KL(q\|p) = \log Z - ELBO .
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn

from pyro_vaeflow.programs.flows import FLOWS
from results.potentials.energies import Energy


class PotentialModel(nn.Module):
    """The program whose latent z has density exp(-U(z)) / Z; `x` only says how many rows.

    The energy is a factor beside a flat prior, so `anneal` with beta above 1 weights the entropy
    of q more: the tempering that Rezende & Mohamed use, their section 6.1.
    """

    def __init__(self, energy: Energy) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, x: torch.Tensor) -> None:
        """Draws z ``(rows, 2)`` and weights it by its energy, nats."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (2,)))
            pyro.factor("energy", -self.energy(z))


class FlowGuide(nn.Module):
    """An unconditional flow over a learned normal: the posterior of a program without data.

    Args:
        flow: a name in `FLOWS`.
        num_flows: K.
        options: those of the flow's builder.

    Example:
        >>> FlowGuide("planar", 2)(torch.zeros(5, 0)).shape
        torch.Size([5, 2])
    """

    def __init__(self, flow: str, num_flows: int, **options: Any) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.log_scale = nn.Parameter(torch.zeros(2))
        self.flow = nn.ModuleList(FLOWS[flow](2, num_flows, None, **options))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Draws z ``(rows, 2)``."""
        base = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.TransformedDistribution(base, list(self.flow)))

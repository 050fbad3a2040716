"""Rounds of adaptive importance sampling: proposals that close in on each row's posterior."""

from dataclasses import dataclass

import torch

from pyro_vaeflow.inference.latent_vectors import Latents
from pyro_vaeflow.inference.noise import RowStream
from pyro_vaeflow.inference.student_mixtures import StudentMixture, chosen, fitted, taken
from pyro_vaeflow.inference.tempering import LEAST, cooling

MEMORY = 2  # rounds whose draws a fit reads
COOLING = 0.25  # least effective size of tempered weights, in shares of a round's draws
A_PART = 20  # draws for each dimension of a part that is fitted to them, at least


@dataclass(frozen=True)
class Effort:
    """How much is done for a row."""

    parts: int  # of a mixture
    draws: int  # a round
    fits: int  # draws that a mixture is fitted to
    rounds: int  # before the guide's draws join in
    more: int  # rounds after that
    final: int  # fresh draws
    population: int  # draws on each path to the posterior
    steps: int  # along it


class Rounds:
    """Proposals that follow each other: each is fitted to weighted draws of the last few."""

    def __init__(self, latents: Latents, effort: Effort, stream: RowStream) -> None:
        self.latents, self.effort, self.stream = latents, effort, stream
        self.proposals: list[StudentMixture] = []
        self.drawn: list[torch.Tensor] = []
        self.log_joint: list[torch.Tensor] = []

    def after(self, proposal: StudentMixture) -> StudentMixture:
        """What the draws of a proposal, and of those before it, lead to."""
        effort, stream = self.effort, self.stream
        self.proposals.append(proposal)
        self.drawn.append(self.latents.propose(proposal, effort.draws, stream))
        self.log_joint.append(self.latents.log_joint(self.drawn[-1]))
        u, recent = torch.cat(self.drawn[-MEMORY:], 1), self.proposals[-MEMORY:]
        log_density = torch.stack([mixture.log_prob(u) for mixture in recent]).logsumexp(0)
        log_weight = torch.cat(self.log_joint[-MEMORY:], 1) - log_density
        log_weight.nan_to_num_(LEAST, neginf=LEAST)
        power = cooling(log_weight, COOLING * effort.draws)
        # points at even distances: less noise than independent choices
        places = torch.arange(effort.fits, dtype=u.dtype, device=u.device) + stream.uniform(1)
        some = taken(u, chosen((power * log_weight).softmax(-1), places / effort.fits))
        return fit_parts(some, effort, stream)


def fit_parts(u: torch.Tensor, effort: Effort, stream: RowStream) -> StudentMixture:
    """A mixture of as many parts as draws ``(num_data, n, dim)`` suffice for, and no more."""
    parts = min(effort.parts, u.shape[1] // (A_PART * u.shape[2]))
    return fitted(u, stream.uniform(max(1, parts)))


def around(loc: torch.Tensor, factor: torch.Tensor, widths: dict[float, float]) -> StudentMixture:
    """Parts of one place and several widths, width -> share."""
    log_weights = loc.new_tensor([*widths.values()]).log().expand(len(loc), -1)
    factors = torch.stack([width * factor for width in widths], 1)
    return StudentMixture(log_weights, loc.unsqueeze(1).expand(-1, len(widths), -1), factors)

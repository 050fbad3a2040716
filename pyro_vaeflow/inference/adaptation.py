"""Rounds of adaptive importance sampling: proposals that close in on each row's posterior."""

import math

import torch

from pyro_vaeflow.inference.latent_vectors import Latents
from pyro_vaeflow.inference.noise import RowStream
from pyro_vaeflow.inference.student_mixtures import StudentMixture, chosen, fitted, taken
from pyro_vaeflow.inference.tempering import LEAST, cooling

MEMORY = 6  # rounds whose draws a fit reads
COOLING = 0.25  # least effective size of tempered weights, in shares of a round's draws
PARTS, A_PART = 16, 60  # of a mixture, at most; draws for each dimension of one, at least


class Rounds:
    """Proposals that follow each other: each is fitted to weighted draws of the last few."""

    def __init__(self, latents: Latents, draws: int, stream: RowStream) -> None:
        self.latents, self.draws, self.stream = latents, draws, stream
        self.proposals: list[StudentMixture] = []
        self.drawn: list[torch.Tensor] = []
        self.log_joint: list[torch.Tensor] = []

    def after(self, proposal: StudentMixture) -> StudentMixture:
        """What the draws of a proposal, and of those before it, lead to."""
        self.proposals.append(proposal)
        self.drawn.append(self.latents.propose(proposal, self.draws, self.stream))
        self.log_joint.append(self.latents.log_joint(self.drawn[-1]))
        u, recent = torch.cat(self.drawn[-MEMORY:], 1), self.proposals[-MEMORY:]
        log_density = torch.stack([mixture.log_prob(u) for mixture in recent]).logsumexp(0)
        log_weight = torch.cat(self.log_joint[-MEMORY:], 1) - log_density
        log_weight.nan_to_num_(LEAST, neginf=LEAST)
        power = cooling(log_weight, COOLING * self.draws)
        # points at even distances: less noise than independent choices
        places = torch.arange(self.draws, dtype=u.dtype, device=u.device) + self.stream.uniform(1)
        some = taken(u, chosen((power * log_weight).softmax(-1), places / self.draws))
        return fit_parts(some, self.stream)


def fit_parts(u: torch.Tensor, stream: RowStream) -> StudentMixture:
    """A mixture of as many parts as draws ``(num_data, n, dim)`` suffice for, and no more."""
    return fitted(u, stream.uniform(max(1, min(PARTS, u.shape[1] // (A_PART * u.shape[2])))))


def around(loc: torch.Tensor, factor: torch.Tensor, widths: dict[float, float]) -> StudentMixture:
    """Parts of one place and several widths, width -> share."""
    log_weights = loc.new_tensor([*widths.values()]).log().expand(len(loc), -1)
    factors = torch.stack([width * factor for width in widths], 1)
    return StudentMixture(log_weights, loc.unsqueeze(1).expand(-1, len(widths), -1), factors)


def outermost(
    u: torch.Tensor, loc: torch.Tensor, factor: torch.Tensor, share: float
) -> torch.Tensor:
    """Those of the draws ``(num_data, n, dim)`` that are the farthest out, by their `moments`."""
    whole = torch.linalg.solve_triangular(factor, (u - loc.unsqueeze(1)).mT, upper=False)
    return taken(u, whole.square().sum(1).topk(math.ceil(share * u.shape[1])).indices)

"""Hamiltonian Monte Carlo of all rows at once, along a path from a mixture to each posterior.

Gradients lead to where the posterior is, in tens of dimensions too, where draws that are weighted
alone hardly find it.
"""

import math
from collections.abc import Callable

import torch

from pyro_vaeflow.inference.noise import RowStream
from pyro_vaeflow.inference.student_mixtures import StudentMixture, chosen, moments, taken

LEAST = -1e30  # nats, of a draw that is impossible
SURVIVORS = 0.5  # effective size that a step along the path leaves, in shares of the draws
LEAPS = 3  # of a move
ACCEPTED = 0.8  # share of moves, which step sizes are adapted to
KEPT = 5  # moves whose ends are returned


class Path:
    r"""Densities :math:`m^{1-b} p^b` of each row, from a mixture m to the joint density p.

    A state is u with the gradients and values of log m and log p - log m at it, a tensor
    ``(num_data, num_draws, 3 * dim + 2)``.

    Args:
        log_joint: of u ``(num_data, num_draws, dim)`` in nats, differentiable.
    """

    def __init__(
        self, log_joint: Callable[[torch.Tensor], torch.Tensor], start: StudentMixture
    ) -> None:
        self.log_joint, self.start, self.dim = log_joint, start, start.loc.shape[-1]
        self.size = torch.full_like(start.log_weights[:, :1], 0.7 * self.dim**-0.25)

    def at(self, u: torch.Tensor) -> torch.Tensor:
        """The state at u."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            m, p = self.start.log_prob(u), self.log_joint(u)
            slope_m, slope_p = (torch.autograd.grad(value.sum(), u)[0] for value in (m, p))
        ratio = (p - m).nan_to_num(LEAST, neginf=LEAST)
        parts = [u, slope_m, slope_p - slope_m, m.unsqueeze(-1), ratio.unsqueeze(-1)]
        return torch.cat(parts, -1).detach().nan_to_num(0.0, 0.0, LEAST)

    def moved(
        self, state: torch.Tensor, power: torch.Tensor, factor: torch.Tensor, stream: RowStream
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States after a move that keeps the density of this power; the share that it accepts.

        Args:
            power: b, ``(num_data, 1)``.
            factor: of the covariance that scales the move, ``(num_data, dim, dim)``.
        """

        def tempered(state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            _, slope, more, log_prob = state.split([self.dim, self.dim, self.dim, 2], -1)
            log_prob = log_prob[..., 0] + power * log_prob[..., 1]
            return log_prob, (slope + power.unsqueeze(-1) * more) @ factor

        momentum = stream.normal(state.shape[1], self.dim)
        length = (self.size * (0.7 + 0.6 * stream.uniform(state.shape[1]))).unsqueeze(-1)
        log_prob, slope = tempered(state)
        log_ratio = 0.5 * momentum.square().sum(-1) - log_prob
        momentum, end = momentum + 0.5 * length * slope, state
        for leap in range(LEAPS):
            end = self.at(end[..., : self.dim] + length * (momentum @ factor.mT))
            log_prob, slope = tempered(end)
            momentum = momentum + (1.0 if leap < LEAPS - 1 else 0.5) * length * slope
        log_ratio = log_ratio + log_prob - 0.5 * momentum.square().sum(-1)
        log_ratio = log_ratio.nan_to_num(-math.inf).clamp(max=0.0)
        accepted = stream.uniform(state.shape[1]).log() < log_ratio
        return torch.where(accepted.unsqueeze(-1), end, state), log_ratio.exp().mean(-1, True)

    def adapt(self, accepted: torch.Tensor) -> None:
        """Makes the steps of a move longer or shorter, by the share that the last one accepted."""
        self.size = self.size * (0.7 * (accepted - ACCEPTED)).exp()


def tempered_draws(path: Path, num_draws: int, num_steps: int, stream: RowStream) -> torch.Tensor:
    """Draws of about the density at the path's end, ``(num_data, KEPT * num_draws, dim)``.

    At each step b grows until half of the population's effective size is gone; it is drawn anew by
    its weights, and each draw makes a move whose scale is the covariance of all.

    References:
        P. Del Moral, A. Doucet, A. Jasra, Sequential Monte Carlo samplers, 2006,
        doi:10.1111/j.1467-9868.2006.00553.x.
        A. Buchholz, N. Chopin, P. Jacob, Adaptive Tuning of Hamiltonian Monte Carlo Within
        Sequential Monte Carlo, 2021, arXiv:1808.07730.
    """
    state, ends = path.at(path.start.draw(num_draws, stream)), []
    power = torch.zeros_like(path.size)
    even = torch.arange(num_draws, dtype=state.dtype, device=state.device)
    for step in range(num_steps + KEPT - 1):
        rest = (1.0 - power) * state[..., -1]
        share = cooling(rest, SURVIVORS * num_draws)
        if step >= num_steps - 1:
            share = torch.ones_like(share)
        places = (even + stream.uniform(1)) / num_draws
        state = taken(state, chosen((share * rest).softmax(-1), places))
        power = power + share * (1.0 - power)
        factor = moments(state[..., : path.dim])[1]
        state, accepted = path.moved(state, power, factor, stream)
        path.adapt(accepted)
        ends.append(state[..., : path.dim])
    return torch.cat(ends[-KEPT:], 1)


def annealed_log_weights(
    path: Path, num_draws: int, num_steps: int, stream: RowStream
) -> torch.Tensor:
    r"""Log weights of annealed importance sampling, ``(num_draws, num_data)``, nats.

    Draws of the start move along the path in even steps; the mean of their weights is unbiased for
    what p integrates to. The lengths of moves are those of a pilot, which is thrown away.

    References:
        R. Neal, Annealed importance sampling, 2001, arXiv:physics/9803008.
    """
    factor, sizes = moments(path.start.draw(num_draws, stream))[1], []
    for is_pilot in (True, False):
        state = path.at(path.start.draw(num_draws // 4 if is_pilot else num_draws, stream))
        log_weight = state[..., -1] / num_steps
        for step in range(1, num_steps):
            if is_pilot:
                sizes.append(path.size)
            path.size = sizes[step - 1]
            power = torch.full_like(path.size, step / num_steps)
            state, accepted = path.moved(state, power, factor, stream)
            log_weight = log_weight + state[..., -1] / num_steps
            path.adapt(accepted)
    return log_weight.T


def cooling(log_weight: torch.Tensor, enough: float) -> torch.Tensor:
    """The power, at most 1, of weights ``(num_data, n)`` whose effective size is enough."""
    log_weight = log_weight - log_weight.amax(-1, keepdim=True)
    low, high = torch.zeros_like(log_weight[:, :1]), torch.full_like(log_weight[:, :1], 2.0)
    for _ in range(24):  # the first power that is tried is 1
        power = 0.5 * (low + high)
        weight = (power * log_weight).exp_()
        is_enough = weight.sum(-1, keepdim=True).square() >= (
            enough * weight.square_().sum(-1, keepdim=True)
        )
        low, high = torch.where(is_enough, power, low), torch.where(is_enough, high, power)
    return low.clamp(max=1.0)

r"""Mixtures of Student's t distributions, one a row: proposals that are fitted to draws.

Rows lead here, ``(num_data, num_samples, dim)``, so that one call serves the mixtures of all rows.
Tails heavier than those of a normal keep importance weights bounded where the fit is poor.
"""

import math
from collections.abc import Sequence

import torch

from pyro_vaeflow.inference.noise import RowStream

DEGREES = 4  # of freedom
STEPS = 6  # of expectation and maximisation; the draws will be made anew from what is fitted
SPREAD = 0.1  # volume, in shares of a part of all draws, that a part shrinks to without draws
TINY = 1e-8  # of a variance, added to it: a factor exists where draws lie on a line


class StudentMixture:
    """A mixture of multivariate t distributions for each row.

    Args:
        log_weights: ``(num_data, parts)``; need not be normalised.
        loc: ``(num_data, parts, dim)``.
        factor: lower triangular factors of the scale matrices, ``(num_data, parts, dim, dim)``.

    Example:
        >>> mixture = StudentMixture(torch.zeros(3, 1), torch.zeros(3, 1, 2), torch.eye(2))
        >>> mixture.log_prob(torch.zeros(3, 5, 2)).shape
        torch.Size([3, 5])
    """

    def __init__(self, log_weights: torch.Tensor, loc: torch.Tensor, factor: torch.Tensor) -> None:
        self.log_weights, self.loc = log_weights.log_softmax(-1), loc
        self.factor = factor.expand(*loc.shape, loc.shape[-1])
        dim = loc.shape[-1]
        unit = torch.eye(dim, dtype=loc.dtype, device=loc.device)
        self.inverse = torch.linalg.solve_triangular(self.factor, unit, upper=False)
        log_volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        half = 0.5 * (DEGREES + dim)
        constant = math.lgamma(half) - math.lgamma(0.5 * DEGREES)
        constant -= 0.5 * dim * math.log(DEGREES * math.pi)
        self.constant = self.log_weights - log_volume + constant

    def log_parts(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log density of each part, its weight included, and squared distances over `DEGREES`.

        Both are ``(num_data, parts, num_samples)``; distances are in units of the part's scale.
        """
        centred = self.inverse @ u.mT.unsqueeze(1)
        centred -= self.inverse @ self.loc.unsqueeze(-1)
        square = centred.square_().sum(-2).div_(DEGREES)
        log_prob = square.log1p().mul_(-0.5 * (DEGREES + u.shape[-1]))
        return log_prob.add_(self.constant.unsqueeze(-1)), square

    def log_prob(self, u: torch.Tensor) -> torch.Tensor:
        """The log density at u ``(num_data, num_samples, dim)``: ``(num_data, num_samples)``."""
        return self.log_parts(u)[0].logsumexp(1)

    def draw(self, num_samples: int, stream: RowStream) -> torch.Tensor:
        """Draws ``(num_data, num_samples, dim)``."""
        uniform, dim = stream.uniform(num_samples), self.loc.shape[-1]
        direction, chi = stream.normal(num_samples, dim + DEGREES).split([dim, DEGREES], -1)
        step = direction * (DEGREES / chi.square().sum(-1, keepdim=True)).sqrt()
        part = chosen(self.log_weights.exp(), uniform)
        row = torch.arange(len(part), device=part.device).unsqueeze(-1)
        moved = (self.factor[row, part] * step.unsqueeze(-2)).sum(-1)
        return self.loc[row, part] + moved


def joined(mixtures: Sequence[StudentMixture], shares: Sequence[float]) -> StudentMixture:
    """One mixture of several, each with its share."""
    weights = [m.log_weights + math.log(s) for m, s in zip(mixtures, shares, strict=True)]
    loc, factor = ([getattr(m, name) for m in mixtures] for name in ("loc", "factor"))
    return StudentMixture(*(torch.cat(tensors, 1) for tensors in (weights, loc, factor)))


def chosen(weight: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Which of the weighted ``(num_data, n)`` each uniform number ``(num_data, m)`` chooses."""
    sums = weight.cumsum(-1)
    places = torch.searchsorted(sums, (uniform * sums[:, -1:]).contiguous())
    return places.clamp(max=weight.shape[-1] - 1)


def taken(u: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The draws at places ``(num_data, m)`` of u ``(num_data, n, dim)``."""
    return u.gather(1, places.unsqueeze(-1).expand(-1, -1, u.shape[-1]))


def moments(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of draws ``(num_data, n, dim)`` and the lower factors of their covariances."""
    loc = u.mean(1)
    centred = u - loc.unsqueeze(1)
    covariance = centred.mT @ centred / u.shape[1]
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    floor = TINY * (variance + variance.mean(-1, keepdim=True)) + torch.finfo(u.dtype).tiny
    return loc, torch.linalg.cholesky(covariance + floor.diag_embed())


def fitted(u: torch.Tensor, uniform: torch.Tensor) -> StudentMixture:
    """A mixture of as many parts as there are uniform numbers a row, fitted to draws.

    The first centres are draws far from each other, chosen as in k-means++, so that separate modes
    have parts of their own. A part's scale matrix is drawn towards a small round one by a prior
    worth ``dim + 1`` draws.

    References:
        D. Peel, G. McLachlan, Robust mixture modelling using the t distribution, Statistics and
        Computing 10, 2000.

    Args:
        u: ``(num_data, n, dim)``.
        uniform: ``(num_data, parts)``.
    """
    dim, parts = u.shape[-1], uniform.shape[1]
    loc, factor = moments(u)
    whole = torch.linalg.solve_triangular(factor.mT, u - loc.unsqueeze(1), upper=True, left=False)
    centres, distance = [], torch.full_like(u[..., 0], torch.inf)
    for number in range(parts):
        weight = torch.ones_like(distance) if number == 0 else distance
        centre = taken(whole, chosen(weight, uniform[:, number, None]))
        centres.append(centre)
        distance = distance.minimum((whole - centre).square().sum(-1) + TINY)
    unit = torch.eye(dim, dtype=u.dtype, device=u.device)
    first = unit * (0.5 * parts ** (-2.0 / dim)) ** 0.5  # whitened draws have covariance 1
    small = unit * (parts / SPREAD) ** (-2.0 / dim)
    mixture = StudentMixture(torch.zeros_like(uniform), torch.cat(centres, 1), first)
    products = (whole.unsqueeze(-1) * whole.unsqueeze(-2)).flatten(2)
    for _ in range(STEPS):
        log_prob, square = mixture.log_parts(whole)
        share = log_prob.softmax(1)
        # far from a part a draw hardly moves it
        size, moving = share.sum(-1), share.div_(square.add_(1.0)).mul_(1.0 + dim / DEGREES)
        total = moving.sum(-1, keepdim=True) + TINY
        middle = (moving @ whole + TINY * mixture.loc) / total
        outer = (middle.unsqueeze(-1) * middle.unsqueeze(-2)) * total.unsqueeze(-1)
        scatter = (moving @ products).unflatten(-1, (dim, dim)) - outer
        covariance = (scatter + (dim + 1) * small) / (size + dim + 1)[..., None, None]
        mixture = StudentMixture((size + 1.0).log(), middle, torch.linalg.cholesky(covariance))
    back = factor.unsqueeze(1)
    return StudentMixture(
        mixture.log_weights, loc.unsqueeze(1) + mixture.loc @ factor.mT, back @ mixture.factor
    )

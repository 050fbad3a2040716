r"""The four energy potentials of Rezende & Mohamed (2015), Figure 3, and their normalizers.

U2 to U4 do not grow with z_1, so :math:`e^{-U}` has no finite integral; a wall
:math:`10 \max(0, |z_1| - 4)^2` is added to them here, outside the region that the paper shows.
"""

import math
from collections.abc import Callable
from functools import cache

import torch

Energy = Callable[[torch.Tensor], torch.Tensor]


def _bell(distance: torch.Tensor, scale: float) -> torch.Tensor:
    return -0.5 * (distance / scale).square()


def _wave(z1: torch.Tensor) -> torch.Tensor:
    return torch.sin(0.5 * math.pi * z1)


def _wall(z1: torch.Tensor) -> torch.Tensor:
    return 10.0 * (z1.abs() - 4.0).clamp(min=0.0).square()


def ring_with_two_modes(z: torch.Tensor) -> torch.Tensor:
    """U1: ``(..., 2)`` -> ``(...)``, nats."""
    z1 = z[..., 0]
    modes = torch.logaddexp(_bell(z1 - 2.0, 0.6), _bell(z1 + 2.0, 0.6))
    return -_bell(z.square().sum(-1).add(1e-12).sqrt() - 2.0, 0.4) - modes


def wave(z: torch.Tensor) -> torch.Tensor:
    """U2: ``(..., 2)`` -> ``(...)``, nats."""
    z1, z2 = z.unbind(-1)
    return -_bell(z2 - _wave(z1), 0.4) + _wall(z1)


def split_wave(z: torch.Tensor) -> torch.Tensor:
    """U3: ``(..., 2)`` -> ``(...)``, nats."""
    z1, z2 = z.unbind(-1)
    middle = 3.0 * torch.exp(_bell(z1 - 1.0, 0.6))
    upper, lower = _bell(z2 - _wave(z1), 0.35), _bell(z2 - _wave(z1) + middle, 0.35)
    return -torch.logaddexp(upper, lower) + _wall(z1)


def forked_wave(z: torch.Tensor) -> torch.Tensor:
    """U4: ``(..., 2)`` -> ``(...)``, nats."""
    z1, z2 = z.unbind(-1)
    step = 3.0 * torch.sigmoid((z1 - 1.0) / 0.3)
    upper, lower = _bell(z2 - _wave(z1), 0.4), _bell(z2 - _wave(z1) + step, 0.35)
    return -torch.logaddexp(upper, lower) + _wall(z1)


POTENTIALS: dict[str, Energy] = {
    "U1": ring_with_two_modes,
    "U2": wave,
    "U3": split_wave,
    "U4": forked_wave,
}


@cache
def log_normalizer(energy: Energy, half_width: float = 8.0, points: int = 2001) -> float:
    r""":math:`\log Z = \log \int e^{-U(z)} dz` by the trapezoidal rule on a square, nats.

    The integrands are smooth and vanish at the border, where the rule converges exponentially.

    Example:
        >>> round(log_normalizer(lambda z: 0.5 * z.square().sum(-1)), 6)
        1.837877
    """
    axis = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    cell = 2.0 * math.log(2.0 * half_width / (points - 1))
    return (-energy(grid)).logsumexp(0).item() + cell

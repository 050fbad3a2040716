"""A noisy ring in the plane whose true log density is known: the paper's Figure 1."""

import numpy as np
import torch
from scipy.special import i0e
from sklearn.datasets import make_circles

from pyro_vaeflow.validation import check_number, check_size

RADIUS = 0.8


def make_ring(num_points: int = 10_000, noise: float = 0.01, seed: int = 0) -> torch.Tensor:
    """Draws the inner circle of scikit-learn's ``make_circles``: float32 ``(num_points // 2, 2)``.

    Its radius is scikit-learn's default, 0.8, and `noise` is the standard deviation of the Gaussian
    noise on each coordinate. The outer circle, half of the points, is dropped.

    Raises:
        ValueError: when ``num_points`` is below 2 or ``noise`` is not positive.

    Example:
        >>> x = make_ring()
        >>> x.shape, round(float(x.norm(dim=-1).mean()), 3)
        (torch.Size([5000, 2]), 0.8)
    """
    check_size("num_points", num_points, low=2)  # one on each circle
    check_number("noise", noise, above=0.0)
    points, circle = make_circles(num_points, noise=noise, factor=RADIUS, random_state=seed)
    return torch.as_tensor(points[circle == 1], dtype=torch.float32)


def ring_log_density(
    points: torch.Tensor | np.ndarray, noise: float = 0.01, radius: float = RADIUS
) -> np.ndarray:
    r"""Returns the true log density of the ring in nats, ``(...)``, at points ``(..., 2)``.

    A uniform angle on a circle of radius r, plus isotropic Gaussian noise s, has in polar distance
    rho the closed form (I0 is the modified Bessel function)

    .. math:: p(x) = \frac{1}{2 \pi s^2} e^{-(\rho^2 + r^2) / 2 s^2} I_0(\rho r / s^2).

    Raises:
        ValueError: when the last dimension is not 2, or ``noise`` or ``radius`` is not positive.

    Example:
        >>> round(float(ring_log_density(make_ring(seed=1)).mean()), 2)  # expectation 1.57
        1.58
    """
    check_number("noise", noise, above=0.0)
    check_number("radius", radius, above=0.0)
    points = np.asarray(points, dtype=np.float64)
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"points must have shape (..., 2), got {points.shape}")
    rho = np.linalg.norm(points, axis=-1)
    # i0e(t) = exp(-t) I0(t) stays finite where I0 overflows; its exponent completes the square.
    bessel = np.log(i0e(rho * radius / noise**2))
    return bessel - (rho - radius) ** 2 / (2 * noise**2) - np.log(2 * np.pi * noise**2)

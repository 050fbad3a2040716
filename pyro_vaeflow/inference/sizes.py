"""The checks that every size, count and depth goes through, and every scale."""

import math
from numbers import Integral, Real
from typing import Any


def check_size(name: str, value: Any, low: int = 1, high: int | None = None) -> None:
    """Refuses what is not an integer, NumPy's included, from `low` to `high`.

    Raises:
        ValueError: names the argument, the value and what is allowed.

    Example:
        >>> check_size("num_steps", 0)
        Traceback (most recent call last):
        ValueError: num_steps must be an integer of at least 1, got 0
    """
    right = isinstance(value, Integral) and not isinstance(value, bool)
    if not right or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {allowed}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Refuses what is not a finite number above 0.

    Raises:
        ValueError: names the argument and the value.

    Example:
        >>> check_positive("start_scale", 0.0)
        Traceback (most recent call last):
        ValueError: start_scale must be a finite number above 0, got 0.0
    """
    if not (isinstance(value, Real) and 0.0 < value < math.inf):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")

"""Pyro's own transform layers, run as one transform: fewer, larger operations, the same numbers."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import nn
from torch.distributions import Transform, constraints


class FusedLayers(TransformModule):
    """A stack of Pyro transforms, kept in ``layers``, whose parameters one transform uses at once.

    The layers stay what a modeler edits, saves and inspects. A subclass says in `as_one` which
    transform equals their composition.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(cache_size=1)
        self.layers = nn.ModuleList(layers)

    @abstractmethod
    def as_one(self) -> Transform:
        """The transform that equals the layers one after another, at their parameters of now."""

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        self._last = self.as_one()
        return self._last(x)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        self._last = self.as_one()
        return self._last.inv(y)

    @property
    def _cached_log_scale(self) -> torch.Tensor | None:
        """That of the transform that ran last, if it has scales: Pyro's affine layers cache it."""
        return getattr(getattr(self, "_last", None), "_cached_log_scale", None)

    def __getstate__(self) -> dict[str, Any]:
        """Without the last values, whose graph cannot be copied."""
        return super().__getstate__() | {"_last": None, "_cached_x_y": (None, None)}

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x_old, y_old = self._cached_x_y
        if x is not x_old or y is not y_old:
            self(x)
        return self._last.log_abs_det_jacobian(*self._last._cached_x_y)

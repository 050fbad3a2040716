"""The best state of two programs so far, by the ELBO of held-out rows."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pyro
import torch

from pyro_vaeflow.inference.parameters import Program, modules


class Best:
    """The modules' states, and the store's parameters, at the best held-out evaluation."""

    def __init__(self, model: Program, guide: Program) -> None:
        self.pair = (model, guide)
        self.value, self.evaluations_since = -math.inf, 0
        self.step: int | None = None
        self.kept: dict[str, torch.Tensor] = {}
        self.states: list[dict[str, Any]] = []

    def see(self, step: int, value: float) -> None:
        if value > self.value:
            self.value, self.step, self.evaluations_since = value, step, 0
            stored = pyro.get_param_store().named_parameters()
            self.kept = {name: p.detach().clone() for name, p in stored}
            self.states = [deepcopy(module.state_dict()) for module in modules(*self.pair)]
        else:
            self.evaluations_since += 1

    def restore(self) -> None:
        stored = dict(pyro.get_param_store().named_parameters())
        with torch.no_grad():
            for name, value in self.kept.items():
                stored[name].copy_(value)
        for module, state in zip(modules(*self.pair), self.states, strict=False):
            module.load_state_dict(state)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What `load` takes, with `step` and `evaluations_since`, to go on in another process."""
        found = {"value": torch.tensor(self.value, dtype=torch.float64)}
        found |= {f"param.{name}": value for name, value in self.kept.items()}
        for place, state in enumerate(self.states):
            found |= {f"{place}.{name}": value for name, value in state.items()}
        return found

    def load(
        self, tensors: Mapping[str, torch.Tensor], step: int | None, evaluations_since: int
    ) -> None:
        """Takes up what another `Best` of such programs held.

        Raises:
            KeyError: a tensor is missing.
        """
        self.value, self.step = tensors["value"].item(), step
        self.evaluations_since = evaluations_since
        names = pyro.get_param_store().keys()
        self.kept = {k: tensors[f"param.{k}"] for k in names if f"param.{k}" in tensors}
        self.states = []
        for place, module in enumerate(modules(*self.pair) if step is not None else ()):
            self.states.append({name: tensors[f"{place}.{name}"] for name in module.state_dict()})

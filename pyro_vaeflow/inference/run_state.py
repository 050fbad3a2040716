"""All that the steps of a training change, as plain values and tensors, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch.distributions import constraints

from pyro_vaeflow.inference.best import Best
from pyro_vaeflow.inference.fingerprint import is_plain
from pyro_vaeflow.inference.parameters import Program, modules
from pyro_vaeflow.inference.state import CheckpointError, restore, state_of
from pyro_vaeflow.inference.svi import OneOptimizer

# What `train` notes of each step.
RECORD = (
    "step loss elbo log_likelihood kl anneal learning_rate grad_norm seconds held_out_elbo".split()
)
CONSTRAINTS = {
    name: value
    for name in constraints.__all__
    if isinstance(value := getattr(constraints, name), constraints.Constraint)
}


class Run:
    """All that the steps of a training change.

    Args:
        called: the modules that the programs call.
        device: of the rows.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        called: list[torch.nn.Module],
        optim: OneOptimizer,
        device: torch.device,
    ) -> None:
        self.model, self.guide, self.optim, self.device = model, guide, optim, device
        own = {id(part) for module in modules(model, guide) for part in module.modules()}
        # Plain functions' modules: their parameters are in Pyro's store, their buffers nowhere.
        self.others = [part for part in called if id(part) not in own]
        self.best = Best(model, guide)
        self.records: list[dict[str, float]] = []

    def to_save(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Plain values and copies of tensors, from which `take_up` goes on."""
        optimizer, of_optimizer = _optimizer_state(self.optim)
        random_state, of_random = _random_state(self.device)
        content = {
            "best": [self.best.step, self.best.evaluations_since],
            "optimizer": optimizer,
            "random": random_state,
            "constraints": _constraint_names(),
        }
        rows = [[record[name] for name in RECORD] for record in self.records]
        tensors = {
            "history": torch.tensor(rows, dtype=torch.float64),
            **_prefixed("state", state_of(self.model, self.guide)),
            **_prefixed("buffers", self._buffers()),
            **_prefixed("best", self.best.tensors()),
            **_prefixed("optimizer", of_optimizer),
            **_prefixed("random", of_random),
        }
        return content, {name: value.detach().clone() for name, value in tensors.items()}

    def take_up(self, content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts what `to_save` gave into a run that is as it was before its first step."""
        state = _of("state", tensors)
        _make_late(self.optim, state, content["constraints"])
        restore(self.model, self.guide, state)
        for name, buffer in self._buffers().items():
            buffer.copy_(tensors[f"buffers.{name}"])
        _set_optimizer_state(self.optim, content["optimizer"], _of("optimizer", tensors))
        self.best.load(_of("best", tensors), *content["best"])
        for row in tensors["history"].tolist():
            self.records.append(dict(zip(RECORD, row, strict=True)) | {"step": int(row[0])})
        _set_random_state(content["random"], _of("random", tensors), self.device)

    def _buffers(self) -> dict[str, torch.Tensor]:
        return {
            f"{place}.{name}": buffer
            for place, part in enumerate(self.others)
            for name, buffer in part.named_buffers(recurse=False)
        }


def _optimizer_state(optim: OneOptimizer) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """By the place of a parameter: what the optimizer keeps of it, and its group's settings."""
    saved = optim.torch_optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    tensors = {}
    for place, values in saved["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{place}.{key}"] = value
            else:
                plain.setdefault(str(place), {})[key] = _checked(value, key, optim)
    groups: dict[str, dict[str, Any]] = {}
    for group in saved["param_groups"]:
        settings = {k: _checked(v, k, optim) for k, v in group.items() if k != "params"}
        groups |= dict.fromkeys(map(str, group["params"]), settings)
    return {"names": list(optim.parameters), "plain": plain, "groups": groups}, tensors


def _checked(value: Any, name: str, optim: OneOptimizer) -> Any:
    if not is_plain(value):
        raise ValueError(
            f"optimizer {type(optim.torch_optimizer).__name__} keeps {name}={value!r:.60}, which "
            "no checkpoint can hold; use one that keeps tensors and numbers"
        )
    return value


def _set_optimizer_state(
    optim: OneOptimizer, content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    names = list(optim.parameters)
    if sorted(names) != sorted(content["names"]):
        raise CheckpointError(
            f"the optimizer has the parameters {names[:5]}, not {content['names'][:5]}"
        )
    fresh = optim.torch_optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for place, values in content["plain"].items():
        state[names.index(content["names"][int(place)])] = dict(values)
    for name, value in tensors.items():
        place, _, key = name.partition(".")
        state.setdefault(names.index(content["names"][int(place)]), {})[key] = value.clone()
    for group in fresh["param_groups"]:
        saved = content["groups"][str(content["names"].index(names[group["params"][0]]))]
        for key, value in saved.items():  # JSON has lists for tuples
            group[key] = tuple(value) if isinstance(group[key], tuple) else value
    optim.torch_optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})


def _constraint_names() -> dict[str, str | None]:
    """Parameter of the store -> the name of its constraint in torch, None if it has none there."""
    known = {id(constraint): name for name, constraint in CONSTRAINTS.items()}
    found = pyro.get_param_store().get_state()["constraints"]
    return {name: known.get(id(constraint)) for name, constraint in found.items()}


def _make_late(
    optim: OneOptimizer, state: Mapping[str, torch.Tensor], names: Mapping[str, str | None]
) -> None:
    """Makes each ``pyro.param`` that only a later step of the killed run had reached."""
    store = pyro.get_param_store()
    for name, constraint in names.items():
        if name in store or f"param.{name}" not in state:
            continue
        if constraint not in CONSTRAINTS:
            raise CheckpointError(
                f"parameter {name!r} came up in a later step, with a constraint that has no name: "
                "it cannot be made anew; reach it in the first step"
            )
        value = state[f"param.{name}"].clone().requires_grad_()
        store.set_state({"params": {name: value}, "constraints": {name: CONSTRAINTS[constraint]}})
    optim.add_late(dict(store.named_parameters()))


def _random_state(device: torch.device) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    state = get_rng_state()
    version, words, gauss = state["random"]
    kind, keys, *rest = state["numpy"]
    tensors = {
        "torch": state["torch"],
        "python": torch.tensor(words),
        "numpy": torch.as_tensor(keys.astype(np.int64)),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return {"python": [version, gauss], "numpy": [kind, *rest]}, tensors


def _set_random_state(
    content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    version, gauss = content["python"]
    kind, *rest = content["numpy"]
    set_rng_state(
        {
            "torch": tensors["torch"].clone(),
            "random": (version, tuple(tensors["python"].tolist()), gauss),
            "numpy": (kind, tensors["numpy"].numpy().astype(np.uint32), *rest),
        }
    )
    if device.type == "cuda" and "cuda" in tensors:  # else the processor has begun the training
        torch.cuda.set_rng_state(tensors["cuda"], device)


def _prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _of(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}

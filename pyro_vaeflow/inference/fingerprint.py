"""What a training's numbers depend on, as plain values and hashes: the same in each process."""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO

import pyro_vaeflow
from pyro_vaeflow.inference.parameters import Program, modules

PACKAGES = ("pyro-ppl", "torch", "numpy", "scikit-learn", "pandas")


def package_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Package -> version, of this one, Python, `PACKAGES` and `more`.

    Example:
        >>> package_versions()["pyro-vaeflow"] == pyro_vaeflow.__version__
        True
    """
    ours = {"pyro-vaeflow": pyro_vaeflow.__version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in (*PACKAGES, *more)}


def tensor_digest(values: Iterable[Any]) -> str:
    """The sha256 of tensors' types, shapes and values; of other values, of what is plain in them.

    Example:
        >>> tensor_digest([torch.zeros(2)]) == tensor_digest([torch.zeros(2).double()])
        False
    """
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            data = value.detach().cpu().contiguous().flatten()
            digest.update(data.view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value if is_plain(value) else type(value).__qualname__).encode())
    return digest.hexdigest()


def named_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The sha256 of named tensors, whatever their order."""
    return tensor_digest(part for name in sorted(tensors) for part in (name, tensors[name]))


def structure(program: Program) -> str:
    """The sha256 of a program's make: its modules' classes and plain settings, not its parameters.

    Example:
        >>> structure(torch.nn.Dropout(0.1)) == structure(torch.nn.Dropout(0.2))
        False
    """
    bound: list[Any] = []
    whole = program
    while isinstance(program, partial):
        bound += [*program.args, *program.keywords.items()]
        program = program.func
    parts: list[Any] = [getattr(program, "__qualname__", ""), [v for v in bound if is_plain(v)]]
    for module in modules(whole):
        for path, part in module.named_modules():
            parts += [path, _plain_text(part)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def fingerprint(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `train` as plain values: tensors, and the values of schedules, as hashes."""
    return {name: _as_plain(value, call["num_steps"]) for name, value in call.items()}


def is_plain(value: Any) -> bool:
    """Whether a value is a number, text or None, or a list or tuple of those."""
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _as_plain(value: Any, num_steps: int) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, torch.Tensor | tuple):
        return tensor_digest(value if isinstance(value, tuple) else [value])
    if callable(value) and not isinstance(value, ELBO):
        steps = [value(step) for step in range(num_steps)]
        return tensor_digest([torch.tensor(steps, dtype=torch.float64)])
    return value if is_plain(value) else _plain_text(value)


def _plain_text(thing: Any) -> str:
    """An object's class and its public attributes that are plain, in alphabetical order."""
    attributes = sorted(vars(thing).items())
    plain = [(k, v) for k, v in attributes if k[0] != "_" and k != "training" and is_plain(v)]
    return f"{type(thing).__qualname__} {plain}"

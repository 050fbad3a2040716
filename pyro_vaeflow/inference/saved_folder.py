"""A folder of two files, and the tensors of a pair of programs as they are saved in it.

Tensors are written by safetensors, all else as JSON; nothing in the files is ever executed. The
JSON file names the tensor file by its hash and is written last: a folder holds what was saved
before or the new, whole, whenever the process dies and whoever else saves there.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

import pyro_vaeflow
from pyro_vaeflow.inference.parameters import Program, modules, param_scope
from pyro_vaeflow.inference.traces import run_once
from pyro_vaeflow.locks import hold_lock
from pyro_vaeflow.plain_files import read_bytes, read_json, write_whole
from pyro_vaeflow.validation import ConfigError, check_names

FORMAT = 1  # of the two files; a reader refuses any other
KEYS = ("format", "versions", "content", "tensors", "sha256")
PACKAGES = ("pyro-ppl", "torch", "numpy", "scikit-learn", "pandas")


class CheckpointError(ValueError):
    """Files or tensors that are not what was saved; the message names which."""


def write(
    folder: str | Path,
    content: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    name: str = "detector",
) -> None:
    """Writes a checkpoint to `folder`, over one that is there; files appear whole or not at all.

    Args:
        content: plain values, as JSON has them.
        name: of the JSON file, without its ending, and the start of the tensor file's.

    Raises:
        OSError: the folder cannot be written, the disk is full, say; an earlier checkpoint in it
            is as it was.
    """
    folder = Path(folder)
    # Copies: safetensors refuses tensors that share memory, as those of one module in two roles do.
    data = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    document = {"format": FORMAT, "versions": package_versions()}
    document |= {"content": content, "tensors": digest}
    # Through text, so that what is hashed is what a reader will see.
    document = json.loads(json.dumps(document, allow_nan=False))
    text = json.dumps(document | {"sha256": _digest(document)}, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / f".{name}.lock", patience=-1):
            write_whole(folder / _tensor_file(name, digest), data)
            write_whole(folder / f"{name}.json", text.encode())
            others = _tensor_file(name, "*")
            for path in [*folder.glob(others), *folder.glob(f".{others}.*.partial")]:
                if path.name != _tensor_file(name, digest):  # older, or of a killed process
                    path.unlink()
    except OSError as error:
        # Of the same class: OSError makes a PermissionError, say, from its number.
        why = f"{error.strerror}: nothing was saved; make room or choose another folder than"
        raise OSError(error.errno, why, str(folder)) from error


def read(folder: str | Path, name: str = "detector") -> tuple[Any, dict[str, torch.Tensor]]:
    """What `write` was given: content and tensors.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is damaged, of another format, or no such file at all.
    """
    path = Path(folder) / f"{name}.json"
    while True:
        document = _document(path)
        try:
            return _of_document(document, path, name)
        except FileNotFoundError:
            if _document(path) == document:
                raise  # else another process has saved anew, and removed what was to be read


def _document(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _of_document(document: Any, path: Path, name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """What the JSON file at `path` and the tensor file that it names hold, if they are sound."""
    found = document.get("format") if isinstance(document, dict) else document
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: this version reads format {FORMAT}, got {found!r:.60}; use the version that "
            "saved it and save anew"
        )
    check_keys(document, KEYS, str(path))
    if document["sha256"] != _digest({k: document[k] for k in KEYS if k != "sha256"}):
        raise CheckpointError(f"{path} was changed after it was saved: its sha256 is another")
    digest = document["tensors"]
    # Before it is part of a path: 64 hexadecimal digits lead nowhere else.
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise CheckpointError(f"{path}: tensors must be a sha256, got {digest!r:.80}")
    path = path.with_name(_tensor_file(name, digest))
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path} was changed after it was saved: its sha256 is another")
    try:
        return document["content"], load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def check_keys(values: Any, keys: tuple[str, ...], what: str) -> None:
    """Refuses what is not an object of just these keys, by name.

    Raises:
        CheckpointError: a key is missing or unknown.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"{what} must hold an object, got {values!r:.60}")
    if missing := [key for key in keys if key not in values]:
        raise CheckpointError(f"{what} lacks {', '.join(missing)}")
    try:
        check_names(values, keys, "key")
    except ConfigError as error:
        raise CheckpointError(f"{what}: {error}") from error


def state_of(model: Program, guide: Program) -> dict[str, torch.Tensor]:
    """The tensors of a pair: ``model.*`` and ``guide.*`` of modules, ``param.*`` of ``pyro.param``.

    Buffers too, and what modules hold as attributes, such as the permutations of Pyro's
    autoregressive networks.
    """
    state: dict[str, torch.Tensor] = {}
    for role, module in _roles(model, guide):
        state |= {f"{role}.{k}": v for k, v in module.state_dict().items()}
        state |= {f"{role}.{k}": getattr(part, name) for k, part, name in _attributes(module)}
    state |= {f"param.{name}": value.detach() for name, value in _stored(model, guide).items()}
    return {name: value.contiguous() for name, value in state.items()}


def restore(model: Program, guide: Program, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts the tensors of `state_of` into programs of the same make.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape or dtype is another.
    """
    check_fits(state_of(model, guide), tensors)
    with torch.no_grad():
        for role, module in _roles(model, guide):
            module.load_state_dict({k: tensors[f"{role}.{k}"] for k in module.state_dict()})
            for key, part, name in _attributes(module):
                setattr(part, name, tensors[f"{role}.{key}"].clone())
        for name, value in _stored(model, guide).items():
            value.copy_(tensors[f"param.{name}"])


def make_parameters(model: Program, guide: Program, x: torch.Tensor) -> None:
    """Runs the programs on the rows `x`, so that their ``pyro.param`` exist to be restored."""
    with param_scope(model, guide), torch.no_grad():
        run_once(model, guide, (x,))


def check_fits(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises a CheckpointError that names tensors whose names, shapes or dtypes are others."""
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unknown:
        names = f"missing {sorted(missing)[:5]}, unknown {sorted(unknown)[:5]}"
        raise CheckpointError(f"the tensors are not those of these programs: {names}")
    for name, value in expected.items():
        wanted, got = ((tuple(t.shape), t.dtype) for t in (value, tensors[name]))
        if got != wanted:
            raise CheckpointError(f"tensor {name!r}: expected {wanted}, got {got}")


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
            value = value if value.layout == torch.strided else value.to_dense()
            data = value.detach().cpu().contiguous().flatten()
            digest.update(data.view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value if is_plain(value) else type(value).__qualname__).encode())
    return digest.hexdigest()


def named_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The sha256 of named tensors, whatever their order."""
    return tensor_digest(part for name in sorted(tensors) for part in (name, tensors[name]))


def is_plain(value: Any) -> bool:
    """Whether a value is a number, text or None, or a list or tuple of those."""
    if isinstance(value, list | tuple):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _roles(model: Program, guide: Program) -> list[tuple[str, nn.Module]]:
    pairs = (("model", model), ("guide", guide))
    return [(role, module) for role, program in pairs for module in modules(program)]


def _attributes(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, owner and attribute of each tensor outside the state dict; caches are private."""
    for path, part in module.named_modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor) and not name.startswith("_"):
                yield f"{path}#{name}", part, name


def _stored(model: Program, guide: Program) -> dict[str, torch.Tensor]:
    """The pair's unconstrained parameters in Pyro's store, without those of its modules."""
    of_modules = {id(p) for module in modules(model, guide) for p in module.parameters()}
    with param_scope(model, guide):
        stored = dict(pyro.get_param_store().named_parameters())
    return {name: value for name, value in stored.items() if id(value) not in of_modules}


def _tensor_file(name: str, digest: str) -> str:
    start = "tensors" if name == "detector" else name  # as version 0.1 has named a detector's
    return f"{start}-{digest[:16]}.safetensors"


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

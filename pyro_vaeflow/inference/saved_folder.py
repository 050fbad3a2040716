"""A folder of two files: tensors by safetensors, all else JSON. Nothing in it is ever executed.

The JSON file names the tensor file by its hash and is written last: a folder holds what was saved
before or the new, whole, whenever the process dies and whoever else saves there.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pyro_vaeflow.locks import hold_lock
from pyro_vaeflow.plain_files import read_bytes, read_json, write_whole
from pyro_vaeflow.validation import ConfigError, check_names

FORMAT = 1  # of the two files; a reader refuses any other
KEYS = ("format", "versions", "content", "tensors", "sha256")


class CheckpointError(ValueError):
    """Files or tensors that are not what was saved; the message names which."""


def write(
    folder: str | Path,
    content: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    versions: Mapping[str, str],
    name: str = "detector",
) -> None:
    """Writes a checkpoint to `folder`, over one that is there; files appear whole or not at all.

    Args:
        content: plain values, as JSON has them.
        versions: what made it, for people: a reader does not look at them.
        name: of the JSON file, without its ending, and the start of the tensor file's.

    Raises:
        OSError: the folder cannot be written, the disk is full, say; an earlier checkpoint in it
            is as it was.
    """
    folder = Path(folder)
    # Copies: safetensors refuses tensors that share memory, as those of one module in two roles do.
    data = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    document = {"format": FORMAT, "versions": dict(versions), "content": content, "tensors": digest}
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
        return read_json(path, _refuse_constant)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _of_document(document: Any, path: Path, name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """What the JSON file at `path` and the tensor file that it names hold, if they are sound."""
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} must hold an object, got {type(document).__name__}")
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: this version reads format {FORMAT}, got {document.get('format')!r:.60}; use "
            "the version that saved it and save anew"
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


def _tensor_file(name: str, digest: str) -> str:
    start = "tensors" if name == "detector" else name  # as version 0.1 has named a detector's
    return f"{start}-{digest[:16]}.safetensors"


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")

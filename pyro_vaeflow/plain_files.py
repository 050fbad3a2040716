"""Files written whole or not at all, read once their size is known, not followed elsewhere."""

import glob
import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from pyro_vaeflow.validation import ConfigError

MAX_JSON = 2**26  # bytes of a file
MAX_VALUES = 2_000_000  # in it: lists and objects take memory that their two characters do not show


def write_whole(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Writes a file under a temporary name, to the disk, and renames it: the old one or the new.

    A link of that name is replaced; what it leads to stays as it is. Of several processes that
    write it at once, the file is that of one. What killed ones left is removed.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            for part in [data] if isinstance(data, bytes) else data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except FileNotFoundError:
        if not path.exists():
            raise  # else another process has written the file meanwhile, and removed this part
    finally:
        partial.unlink(missing_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        left.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a file; a ValueError if there are more than `limit`."""
    if not path.is_file():  # nor a pipe, which would wait for ever
        raise FileNotFoundError(f"{path} is not there: the folder holds no complete checkpoint")
    if limit is not None and path.stat().st_size > limit:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {limit}")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """What a JSON file holds, once it is known that this takes a few hundred MiB at most."""
    data = read_bytes(path, MAX_JSON)
    if (count := sum(map(data.count, (b",", b"[", b"{")))) > MAX_VALUES:
        raise ValueError(f"{path} has some {count} values, more than {MAX_VALUES}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_arrays(path: Path, limit: int) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name, once it is known that they have so few bytes."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > limit:
        raise ValueError(f"its arrays have {size} bytes, more than {limit}")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def inside(path: Path, folder: Path) -> Path:
    """A path below `folder`; refused if links lead it elsewhere: somebody else may make them."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{path} is a link out of {folder}: put there what it leads to")
    return path

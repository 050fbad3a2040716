"""One's own files in a study: a pair of programs, by the function that makes it, and a table.

``programs: my_pair.py:make`` names a function ``make(settings, num_features, x)`` which returns
``(model, guide)``: of the run's settings, of what `Model` and `Guide` are told of the rows, and of
the training rows. ``dataset: orders.csv`` names a table. A study is read with the file's content:
``/where/my_pair.py:make@1a2b3c4d`` is the name of just that content, and no other runs under it.
"""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pyro_vaeflow.validation import ConfigError

DEFAULT = "vae"
# By the key of a study that names it.
FILES = {
    "programs": re.compile(r"(?P<path>.+\.py)(?P<function>:\w+)(@(?P<digest>[0-9a-f]{8}))?"),
    "dataset": re.compile(
        r"(?P<path>.+\.(csv|parquet|npz))(?P<function>)(@(?P<digest>[0-9a-f]{8}))?"
    ),
}
FORM = "expected the name of registered programs, or FILE.py:FUNCTION"


def locate(name: str, folder: Path, key: str = "programs") -> str:
    """A registered name as it is; a file's, relative to `folder`, with its content's digest."""
    if not (match := _match(name, key)):
        return name
    path = (folder / match["path"]).resolve()
    digest = _digest(path, key)
    if match["digest"] not in (None, digest):
        raise ConfigError(
            f"{key}: {path} has changed since {match['digest']!r}; leave out "
            f"'@{match['digest']}' to run it as it is now"
        )
    return f"{path}{match['function']}@{digest}"


def is_file(name: str, key: str = "programs") -> bool:
    """Whether it names a file, and not what is registered."""
    return _match(name, key) is not None


def content_name(name: str, key: str = "programs") -> str:
    """What is named but for the folder: it decides a run's numbers and tells tables' rows apart.

    Example:
        >>> content_name("/home/me/my_pair.py:make@1a2b3c4d")
        'my_pair.py:make@1a2b3c4d'
    """
    return name.rpartition("/")[2] if is_file(name, key) else name


def short_name(name: str, key: str = "programs") -> str:
    """What a run's folder is called by: the file's name, or the registered one.

    Example:
        >>> short_name("/home/me/orders.csv@1a2b3c4d", "dataset")
        'orders'
    """
    match = _match(name, key)
    return Path(match["path"]).stem if match else name


def load(programs: str) -> Callable[..., Any]:
    """The function that makes the pair; the file runs now, and anew at each call of the function.

    So each pair has networks of its own, those at the file's top level too.
    """
    programs = locate(programs, Path.cwd())
    _function(programs)

    def make(*args: Any) -> Any:
        return _function(programs)(*args)

    make.__name__ = content_name(programs)
    return make


def _function(programs: str) -> Callable[..., Any]:
    path, function, digest = re.split(":|@", locate(programs, Path.cwd()))
    module = _module(Path(path), digest)
    if not callable(make := getattr(module, function, None)):
        known = [name for name, value in vars(module).items() if isinstance(value, FunctionType)]
        raise ConfigError(
            f"programs: {path} has no function {function!r}; it has {', '.join(known) or 'none'}"
        )
    return make


def _module(path: Path, digest: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_programs_{digest}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except Exception as error:
        del sys.modules[module.__name__]
        raise ConfigError(f"programs: {path} cannot be run: {error!r}") from error
    return module


def _match(name: str, key: str) -> re.Match[str] | None:
    match = FILES[key].fullmatch(name)
    if match is None and key == "programs" and (":" in name or ".py" in name):
        raise ConfigError(f"programs: {FORM}, got {name!r}")
    return match


def _digest(path: Path, key: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError as error:
        raise ConfigError(
            f"{key}: {path} cannot be read ({error}); give a path from the study file's folder"
        ) from error

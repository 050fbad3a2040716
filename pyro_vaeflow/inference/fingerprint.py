"""What a training's numbers depend on, as plain values and hashes: the same in each process."""

import dis
import hashlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from pyro_vaeflow.inference.saved_folder import is_plain, tensor_digest
from pyro_vaeflow.validation import warn


def structure(program: Any) -> str:
    """The sha256 of a program's make; see `Description`.

    Example:
        >>> structure(torch.nn.Dropout(0.1)) == structure(torch.nn.Dropout(0.2))
        False
    """
    return Description().digest(program)


def fingerprint(call: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a training's numbers, by name: plain values, and the digests of all others.

    Warns:
        UserWarning: names types of which a change would not be noticed.
    """
    words, unknown = {}, set()
    for name, value in call.items():
        description = Description()
        value = value.item() if isinstance(value, np.generic) else value
        words[name] = value if is_plain(value) else description.digest(value)
        unknown |= description.unknown
    if unknown:
        warn(
            f"programs or arguments hold {', '.join(sorted(unknown))}, which a checkpoint does not "
            "compare: if they change, choose another folder"
        )
    return words


class Description:
    """What programs and arguments are made of, in words that are the same in each process.

    Of functions and classes: their code, defaults, what they close over and the globals that they
    name; of those of installed packages the name alone. Of modules and other objects: their class
    and public attributes. A module's tensors are what training changes, and so are those that take
    a gradient: they are left out, as are private attributes, which are caches.

    Attributes:
        unknown: types of values that have no such words.

    Example:
        >>> def doubled(x): return 2 * x
        >>> def tripled(x): return 3 * x
        >>> Description().digest(doubled) == Description().digest(tripled)
        False
    """

    def __init__(self) -> None:
        self.unknown: set[str] = set()
        self._seen: dict[int, tuple[int, Any]] = {}

    def digest(self, value: Any) -> str:
        """The sha256 of a value's description."""
        return _sha256(repr(self._of(value)).encode())

    def _of(self, value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if is_plain(value):
            return value
        if isinstance(value, torch.Tensor):
            return "learned" if value.requires_grad else tensor_digest([value])
        if id(value) in self._seen:
            return f"number {self._seen[id(value)][0]}"
        self._seen[id(value)] = len(self._seen), value  # which keeps it, and so its id
        return [type(value).__qualname__, *self._parts(value)]

    def _parts(self, value: Any) -> Iterator[Any]:
        if isinstance(value, Mapping):
            yield from ([self._of(key), self._of(item)] for key, item in value.items())
        elif isinstance(value, list | tuple):
            yield from map(self._of, value)
        elif isinstance(value, set | frozenset):
            yield from sorted(repr(self._of(item)) for item in value)
        elif isinstance(value, partial):
            yield from map(self._of, (value.func, value.args, value.keywords))
        elif isinstance(value, MethodType):
            yield from map(self._of, (value.__func__, value.__self__))
        elif isinstance(value, FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, CodeType):
            yield from map(self._of, (value.co_code, value.co_consts, value.co_names))
        elif isinstance(value, property):
            yield from map(self._of, (value.fget, value.fset))
        elif isinstance(value, staticmethod | classmethod) or hasattr(value, "__wrapped__"):
            yield self._of(value.__wrapped__)
        elif isinstance(value, type):
            yield from self._of_class(value)
        elif isinstance(value, torch.nn.Module):
            for path, part in value.named_modules():
                yield [path, self._of(type(part)), self._attributes(part, torch.Tensor)]
        elif hasattr(value, "__array__"):
            array = np.asarray(value)
            yield from (str(array.dtype), array.shape)
            yield self._of(array.tolist()) if array.dtype.hasobject else _sha256(array.tobytes())
        else:
            yield from self._of_object(value)

    def _of_function(self, function: FunctionType) -> Iterator[Any]:
        yield [self._of(_content(cell)) for cell in function.__closure__ or ()]
        yield self._of([function.__defaults__, function.__kwdefaults__])
        if _is_installed(function):
            yield f"{function.__module__}.{function.__qualname__}"
            return
        yield self._of(function.__code__)
        for name in sorted(_globals_named(function.__code__) & function.__globals__.keys()):
            value = function.__globals__[name]
            yield [name, self._of(value)]
            if isinstance(value, ModuleType) and not _is_installed(value):
                inside = vars(value)
                yield [[n, self._of(inside[n])] for n in function.__code__.co_names if n in inside]

    def _of_class(self, kind: type) -> Iterator[Any]:
        yield f"{kind.__module__}.{kind.__qualname__}"
        if not _is_installed(kind):
            yield [self._of(base) for base in kind.__bases__]
            for name, value in sorted(vars(kind).items()):
                if isinstance(value, FunctionType) or not name.startswith("_"):
                    yield [name, self._of(value)]

    def _of_object(self, value: Any) -> Iterator[Any]:
        yield self._of(type(value))
        if name := getattr(value, "__qualname__", getattr(value, "__name__", None)):
            yield name  # of a function in C, a library
        elif hasattr(value, "__dict__") and type(value).__module__ not in sys.stdlib_module_names:
            yield self._attributes(value)
        else:
            yield (shown := repr(value)).partition(" at 0x")[0]
            if " at 0x" in shown:
                self.unknown.add(type(value).__qualname__)

    def _attributes(self, thing: Any, but: type | tuple[()] = ()) -> list[Any]:
        """Public attributes by name, without those of a type and the mode of modules."""
        named = sorted(getattr(thing, "__dict__", {}).items())
        return [
            [name, self._of(value)]
            for name, value in named
            if name[0] != "_" and name != "training" and not isinstance(value, but)
        ]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is bound to the name yet
        return None


def _globals_named(code: CodeType) -> set[str]:
    """The names that a function's code, and that of functions in it, looks up in its module."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return names.union(*map(_globals_named, inner))


def _is_installed(thing: Any) -> bool:
    """Whether it is of this package, Python's library or an installed package."""
    name = thing.__name__ if isinstance(thing, ModuleType) else str(thing.__module__)
    if name.partition(".")[0] in (*sys.stdlib_module_names, "pyro_vaeflow"):
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file

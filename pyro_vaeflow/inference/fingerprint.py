"""What a training's numbers depend on, as plain values and hashes: the same in each process."""

import copyreg
import dis
import hashlib
import random
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from pyro_vaeflow.inference.saved_folder import is_plain, tensor_digest
from pyro_vaeflow.validation import warn

OF_CODE = "code consts names argcount kwonlyargcount flags varnames exceptiontable".split()
LOADS = ("LOAD_GLOBAL", "LOAD_NAME")  # the second in a class in a function
OF_TABLES = ("columns", "index", "name", "mask")  # what else arrays may have, as pandas' do
OF_MODULES = {*vars(torch.nn.Module()), "training"}  # torch's own
OF_PYRO = ("_pyro_params", "_pyro_samples")  # constraints and priors of a PyroModule
# They move on in a training, and a resumed one could not bring them back.
RANDOM = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)


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
    name; of those of installed packages the name alone. Of other objects: what a copy would keep,
    and of those of installed packages its public part: the rest is caches. What training changes is
    left out: tensors that take a gradient, and the buffers of modules of installed packages.

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
        if is_plain(value) or isinstance(value, bytes | bytearray):
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
            yield sorted(map(self._alone, value))
        elif isinstance(value, partial):
            yield from map(self._of, (value.func, value.args, value.keywords))
        elif isinstance(value, MethodType):
            yield from map(self._of, (value.__func__, value.__self__))
        elif isinstance(value, FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, CodeType):
            yield from (self._of(getattr(value, f"co_{name}")) for name in OF_CODE)
        elif isinstance(value, property):
            yield from map(self._of, (value.fget, value.fset))
        elif isinstance(value, staticmethod | classmethod) or hasattr(value, "__wrapped__"):
            yield self._of(value.__wrapped__)
        elif isinstance(value, type):
            yield from self._of_class(value)
        elif isinstance(value, torch.nn.Module):
            for path, part in value.named_modules():
                yield [path, self._of(type(part)), *self._of_module(part)]
        elif hasattr(value, "__array__"):
            array = np.asarray(value)
            yield from (str(array.dtype), array.shape)
            yield self._of(array.tolist()) if array.dtype.hasobject else _sha256(array.tobytes())
            yield [self._of(getattr(value, name, None)) for name in OF_TABLES]
        else:
            yield from self._of_object(value)

    def _alone(self, item: Any) -> str:
        """One of several in no order, described as if it were the only one."""
        if is_plain(item):
            return repr(item)
        before = dict(self._seen)
        words, self._seen = self.digest(item), before
        return words

    def _of_function(self, function: FunctionType) -> Iterator[Any]:
        yield [self._of(_content(cell)) for cell in function.__closure__ or ()]
        yield self._of([function.__defaults__, function.__kwdefaults__])
        if _is_installed(function):
            yield f"{function.__module__}.{function.__qualname__}"
            return
        yield self._of(function.__code__)
        yield self._of({name: value for name, value in vars(function).items() if name[0] != "_"})
        for name in sorted(_globals_named(function.__code__) & function.__globals__.keys()):
            value = function.__globals__[name]
            yield [name, self._of(value), *self._inside(value, function.__code__)]

    def _inside(self, value: Any, code: CodeType) -> Iterator[Any]:
        """Of a module of one's own, what code may name in it, and in modules in it."""
        if isinstance(value, ModuleType) and not _is_installed(value):
            for name in sorted({*code.co_names} & vars(value).keys()):
                inner = vars(value)[name]
                yield [name, self._of(inner), *self._inside(inner, code)]

    def _of_class(self, kind: type) -> Iterator[Any]:
        yield f"{kind.__module__}.{kind.__qualname__}"
        if not _is_installed(kind):
            yield [self._of(base) for base in kind.__bases__]
            for name, value in sorted(vars(kind).items()):
                if isinstance(value, FunctionType) or name[:2] != "__" and name != "_abc_impl":
                    yield [name, self._of(value)]

    def _of_object(self, value: Any) -> Iterator[Any]:
        if name := getattr(value, "__qualname__", getattr(value, "__name__", None)):
            yield name  # of a function in C, a library
            owner = getattr(value, "__self__", None)
            yield self._of(None if isinstance(owner, ModuleType) else owner)
            return
        try:
            reduce = copyreg.dispatch_table.get(type(value), lambda it: it.__reduce_ex__(4))
            made = () if isinstance(value, RANDOM) else reduce(value)
        except Exception:  # whatever its class raises where it cannot be copied
            made = ()
        if not made:
            self.unknown.add(type(value).__qualname__)
        elif isinstance(made, tuple):
            make, arguments, state, *items = (*made, None)[: max(3, len(made))]
            if isinstance(state, dict) and _is_installed(type(value)):
                state = {name: part for name, part in state.items() if str(name)[0] != "_"}
            items = [list(part) for part in items if part is not None and not callable(part)]
            yield from map(self._of, (make, arguments, state, items))

    def _of_module(self, part: torch.nn.Module) -> Iterator[Any]:
        """A module's settings, and the tensors that no training changes."""
        named, is_own = vars(part), not _is_installed(type(part))
        frozen = {n: p for n, p in part._parameters.items() if p is not None}
        named = {
            name: value
            for name, value in named.items()
            if name in OF_PYRO
            or name not in OF_MODULES
            and not name.startswith("_pyro")
            and (name[0] != "_" or is_own)
            and not (isinstance(value, torch.Tensor) and (name[0] == "_" or not is_own))
        }
        yield from map(self._of, (named, frozen, part._buffers if is_own else None))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is bound to the name yet
        return None


def _globals_named(code: CodeType) -> set[str]:
    """The names that a function's code, and that of functions in it, looks up in its module."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in LOADS}
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return names.union(*map(_globals_named, inner))


def _is_installed(thing: Any) -> bool:
    """Whether it is of this package, Python's library or an installed package."""
    name = thing.__name__ if isinstance(thing, ModuleType) else str(thing.__module__)
    top, _, inner = name.partition(".")
    if top in sys.stdlib_module_names or top == "pyro_vaeflow" and inner[:8] != "programs":
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file

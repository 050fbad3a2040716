"""Checks of arguments and settings, whose errors name the value that was given and what is allowed.

Settings are fields of a dataclass: `setting` gives each its range beside its default, and
`checked_values` converts and checks them all. `Checked` does so when it is made.
"""

import inspect
import json
import math
import reprlib
import types
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from numbers import Integral, Real
from traceback import walk_stack
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A key or value that a configuration does not allow; the message names what is allowed."""


class Limits(NamedTuple):
    """The range of a number, and the texts that are allowed (all, if none is named)."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()

    def allow(self, value: Any) -> bool:
        """Whether a number is finite and inside the range, a text one of the choices."""
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if isinstance(value, Real) and not isinstance(value, bool):
            value = float(value)
            return self.low <= value <= self.high and self.above < value < self.below
        return True

    def words(self, value: Any) -> str:
        """What is allowed in place of `value`."""
        if isinstance(value, str):
            return f"one of {', '.join(self.choices)}"
        words = {"at least": self.low, "more than": self.above}
        words |= {"at most": self.high, "less than": self.below}
        said = [f"{word} {limit:g}" for word, limit in words.items() if math.isfinite(limit)]
        return " and ".join(said) or "a finite number"


def setting(default: Any = MISSING, *, factory: Any = MISSING, **limits: Any) -> Any:
    """A dataclass field with the `Limits` of its value; for a tuple, of each of its entries."""
    given = {"default": default} if factory is MISSING else {"default_factory": factory}
    return field(**given, metadata={"limits": Limits(**limits)})


@dataclass(frozen=True)
class Checked:
    """Base of the frozen dataclasses whose fields hold what their annotations and ranges say.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Walk(Checked):
        ...     num_steps: int = setting(10, low=1)
        >>> Walk.from_dict({"num_steps": 0})
        Traceback (most recent call last):
        pyro_vaeflow.validation.ConfigError: num_steps: expected at least 1, got 0
    """

    def __post_init__(self) -> None:
        for name, value in checked_values(self).items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Makes a configuration from plain values, as YAML gives them.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range, with those allowed.
        """
        check_names(values, [entry.name for entry in fields(cls)], "key")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, lists for tuples; the inverse of `from_dict`."""
        return json.loads(json.dumps(asdict(self)))


def checked_values(settings: Any) -> dict[str, Any]:
    """A dataclass's values by name, each of its type and inside its range; others are refused."""
    hints, values = _hints(type(settings)), {}  # type: ignore[arg-type]  # types have a hash
    for entry in fields(settings):
        value = convert(getattr(settings, entry.name), hints[entry.name], entry.name)
        limits = entry.metadata.get("limits", Limits())
        for item in value if isinstance(value, tuple) else (value,):
            if not limits.allow(item):
                raise ConfigError(f"{entry.name}: expected {limits.words(item)}, got {item!r}")
        values[entry.name] = value
    return values


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def check_used(config: Any, choice: str, ignored: Mapping[Any, Iterable[str]]) -> None:
    """Refuses a setting that the value of `choice` ignores, unless it is at its default.

    Args:
        ignored: value of `choice` -> the settings that it ignores.
    """
    chosen = getattr(config, choice)
    defaults = {entry.name: entry.default for entry in fields(config)}
    for name in ignored.get(chosen, ()):
        if (value := getattr(config, name)) != defaults[name]:
            raise ConfigError(f"{name}: {choice}={chosen} ignores it; leave it out, got {value!r}")


def check_names(names: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Refuses the first name that is not allowed, naming those that are, the nearest first.

    Example:
        >>> check_names(["x"], ["iaf", "planar"], "flow")
        Traceback (most recent call last):
        pyro_vaeflow.validation.ConfigError: unknown flow 'x'; allowed: iaf, planar
    """
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            near = get_close_matches(str(name), allowed, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ";"
            raise ConfigError(f"unknown {what} {name!r}{hint} allowed: {', '.join(allowed)}")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line outside this package that has led to it."""
    frames, depth = inspect.currentframe(), 1
    for place, (frame, _) in enumerate(walk_stack(frames), 1):  # decorators of others lie between
        name = frame.f_globals.get("__name__", "")
        if name.startswith(__package__) or (name == "torch.utils._contextlib" and depth == place):
            depth = place + 1
    warnings.warn(text, category, stacklevel=depth)


def check_size(name: str, value: Any, low: int = 1, high: int | None = None) -> None:
    """Refuses what is not an integer, NumPy's included, from `low` to `high`.

    Example:
        >>> check_size("num_steps", 0)
        Traceback (most recent call last):
        ValueError: num_steps must be an integer of at least 1, got 0
    """
    limits = Limits(low=low, high=math.inf if high is None else high)
    if not isinstance(value, Integral) or isinstance(value, bool) or not limits.allow(value):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {allowed}, got {value!r}")


def check_number(name: str, value: Any, **limits: Any) -> None:
    """Refuses what is not a finite number inside the `Limits`.

    Example:
        >>> check_number("start_scale", 0.0, above=0.0)
        Traceback (most recent call last):
        ValueError: start_scale must be a finite number, more than 0, got 0.0
    """
    allowed = Limits(**limits)
    if not isinstance(value, Real) or isinstance(value, bool) or not allowed.allow(value):
        raise ValueError(f"{name} must be a finite number, {allowed.words(0.0)}, got {value!r}")


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotated type, or refused: lists become tuples, text like 5e-4 a number."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return _of_one(value, inner, name)
    if hint is Any or (value is None and hint is type(None)):
        return value
    if kind is tuple and isinstance(value, (list, tuple)):
        if not value:
            raise ConfigError(f"{name}: expected at least one value, got none")
        return tuple(convert(item, inner[0], name) for item in value)
    if kind is dict and isinstance(value, Mapping):
        try:
            return json.loads(json.dumps(dict(value)))  # a copy, of what a file can hold
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{name}: expected plain numbers and texts: {error}") from error
    if is_dataclass(hint) and isinstance(value, Mapping):
        try:
            return hint.from_dict(value)  # type: ignore[union-attr]
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    if hint is float and isinstance(value, (Real, str)) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 5e-4 as text
            return float(value)
        except (OverflowError, ValueError):
            pass
    elif hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)  # NumPy's too
    elif isinstance(hint if kind is None else kind, type) and hint is not int:
        if isinstance(value, kind or hint):
            return value
    raise ConfigError(f"{name}: expected {_name(hint)}, got {reprlib.repr(value)}")


def _of_one(value: Any, hints: tuple[Any, ...], name: str) -> Any:
    """`value` as the first of the types that it is of; None need not be named where it is wrong."""
    kinds = [hint for hint in hints if hint is not type(None)]
    if value is None and len(kinds) < len(hints):
        return None
    if len(kinds) == 1:
        return convert(value, kinds[0], name)
    for kind in kinds:
        try:
            return convert(value, kind, name)
        except ConfigError:
            continue
    allowed = " or ".join(map(_name, kinds))
    raise ConfigError(f"{name}: expected {allowed}, got {reprlib.repr(value)}")


def _name(hint: Any) -> str:
    plain = get_origin(hint) is None
    return getattr(hint, "__name__", str(hint)) if plain else str(hint)

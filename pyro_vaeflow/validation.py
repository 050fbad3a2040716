"""Frozen dataclasses that convert and check their fields and refuse unknown keys by name."""

import json
import math
import reprlib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A key or value that a configuration does not allow; the message names what is allowed."""


def setting(
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with the range of its values; for a tuple, of each of its entries."""
    limits = {"low": low, "high": high, "above": above, "below": below, "choices": choices}
    given = {"default": default} if factory is MISSING else {"default_factory": factory}
    return field(**given, metadata=limits)


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
        hints = get_type_hints(type(self))
        for entry in fields(self):
            value = convert(getattr(self, entry.name), hints[entry.name], entry.name)
            _check_limits(entry.name, value, entry.metadata)
            object.__setattr__(self, entry.name, value)

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
        return _plain(asdict(self))


def check_used(config: Checked, choice: str, ignored: Mapping[Any, Iterable[str]]) -> None:
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


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotated type: lists become tuples, and text such as 5e-4 a number."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return convert(value, next(i for i in inner if i is not type(None)), name)
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
    elif isinstance(hint, type) and isinstance(value, hint) and hint is not int:
        return value
    expected = getattr(hint, "__name__", str(hint)) if kind is None else str(hint)
    raise ConfigError(f"{name}: expected {expected}, got {reprlib.repr(value)}")


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    for item in value if isinstance(value, tuple) else (value,):
        if limits.get("choices") and item not in limits["choices"]:
            known = ", ".join(limits["choices"])
            raise ConfigError(f"{name}: expected one of {known}, got {item!r}")
        if limits and isinstance(item, (int, float)) and not isinstance(item, bool):
            inside = limits["low"] <= item <= limits["high"]
            if not (inside and limits["above"] < item < limits["below"]):
                raise ConfigError(f"{name}: expected {_range(limits)}, got {item!r}")


def _range(limits: Mapping[str, Any]) -> str:
    words = {"low": "at least", "high": "at most", "above": "more than", "below": "less than"}
    said = [f"{word} {limits[k]:g}" for k, word in words.items() if math.isfinite(limits[k])]
    return " and ".join(said) or "a finite number"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def check_size(name: str, value: Any, low: int = 1, high: int | None = None) -> None:
    """Refuses what is not an integer, NumPy's included, from `low` to `high`.

    Raises:
        ValueError: names the argument, the value and what is allowed.

    Example:
        >>> check_size("num_steps", 0)
        Traceback (most recent call last):
        ValueError: num_steps must be an integer of at least 1, got 0
    """
    right = isinstance(value, Integral) and not isinstance(value, bool)
    if not right or value < low or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be an integer {allowed}, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Refuses what is not a finite number above 0.

    Raises:
        ValueError: names the argument and the value.

    Example:
        >>> check_positive("start_scale", 0.0)
        Traceback (most recent call last):
        ValueError: start_scale must be a finite number above 0, got 0.0
    """
    if not (isinstance(value, Real) and 0.0 < value < math.inf):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")

"""Nested frozen dataclasses to JSON values and back, strictly."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bitswitch.errors import ConfigError

T = TypeVar("T")


def to_json(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested dictionaries, with lists in the place of tuples."""
    return _listed(asdict(config))


def from_json(kind: type[T], value: object, where: str = "") -> T:
    """Rebuild a dataclass from `to_json`.

    Args:
        kind: its class.
        value: what `to_json` returned; fields that have a default may be absent.
        where: path of the value, for messages.

    Raises:
        ConfigError: a field is unknown, missing or of another type; the message names it.
    """
    assert is_dataclass(kind)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or kind.__name__}: expected an object with fields, found {str(value)[:40]!r}")
    prefix = f"{where}." if where else ""
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    unknown = [str(name) for name in value if name not in known]
    if unknown:
        raise ConfigError(f"{prefix}{unknown[0]} is not a field; there are {', '.join(known)}")
    for name, item in known.items():
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{prefix}{name} is missing")
    return kind(**{name: _convert(hints[name], value[name], f"{prefix}{name}") for name in known if name in value})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return from_json(hint, value, where)  # pyright: ignore[reportArgumentType]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in arguments):
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(repr, arguments))}; found {str(value)[:40]!r}")
    if origin in (Union, types.UnionType):
        if any(type(value) is option for option in arguments):
            return value
        if float in arguments and type(value) is int:
            return float(value)
    elif origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif type(value) is hint:
        return value
    elif hint is float and type(value) is int:
        return float(value)
    raise ConfigError(f"{where}: expected {_name(hint)}, found {str(value)[:40]!r}")


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    return value


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)

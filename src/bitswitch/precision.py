"""Precisions as values: one width for a whole network, or one a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from bitswitch.errors import ArgumentError, PrecisionError, UnknownLayerError

MIN_BITS, MAX_BITS = 2, 8


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def validate_widths(bits: Iterable[int]) -> tuple[int, ...]:
    """Check a set of candidate bit-widths and return it in descending order; the first is the stored width.

    Args:
        bits: distinct integers between 2 and 8, in any order.

    Raises:
        ArgumentError: `bits` is not an iterable of integers.
        PrecisionError: it is empty, has duplicates, or a width is outside 2…8.

    >>> validate_widths([2, 8, 4])
    (8, 4, 2)
    """
    if isinstance(bits, (str, bytes)) or not isinstance(bits, Iterable):
        raise ArgumentError(f"bits must be a collection of integers such as (8, 6, 4, 2), not {bits!r}")
    widths = list(bits)
    wrong = [b for b in widths if not _is_int(b)]
    if wrong:
        raise ArgumentError(f"bit-widths must be integers; got {wrong[0]!r} of type {type(wrong[0]).__name__}")
    if not widths:
        raise PrecisionError("at least one bit-width is needed")
    outside = [b for b in widths if not MIN_BITS <= b <= MAX_BITS]
    if outside:
        raise PrecisionError(f"bit-widths must lie between {MIN_BITS} and {MAX_BITS}; got {outside}")
    if len(set(widths)) != len(widths):
        raise PrecisionError(f"bit-widths must be distinct; got {widths}")
    return tuple(sorted(widths, reverse=True))


def _check_width(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentError(
            f"the bit-width of {where} must be an integer; got {value!r} of type {type(value).__name__}"
        )
    if not MIN_BITS <= value <= MAX_BITS:
        raise PrecisionError(f"the bit-width of {where} must lie between {MIN_BITS} and {MAX_BITS}; got {value}")
    return value


@dataclass(frozen=True)
class Precision:
    """One width for every layer, or one a layer: hashable, comparable, JSON-able.

    Build it with `Precision.of`. Layers without an entry of their own run at `default`.

    Attributes:
        layers: (layer name, bits) pairs sorted by name.
        default: width of all other layers, or None if there must not be any.

    >>> Precision.of({"fc1": 8, "conv": 4}, default=2)
    Precision(layers=(('conv', 4), ('fc1', 8)), default=2)
    >>> print(Precision.of(4))
    4
    """

    layers: tuple[tuple[str, int], ...] = ()
    default: int | None = None

    @classmethod
    def of(cls, value: int | Mapping[str, int] | Precision, default: int | None = None) -> Precision:
        """Make a precision from what a user writes.

        Args:
            value: a width for all layers, a mapping from layer names to widths, or a precision.
            default: with a mapping, the width of the layers that it does not name.

        Raises:
            ArgumentError: a value of another type, or `default` together with a uniform width or a precision.
            PrecisionError: a width outside 2…8.
        """
        if isinstance(value, Mapping):
            for name in value:
                if not isinstance(name, str):
                    raise ArgumentError(f"layer names must be strings; got {name!r}")
            layers = tuple(sorted((name, _check_width(bits, f"layer {name!r}")) for name, bits in value.items()))
            return cls(layers, None if default is None else _check_width(default, "default"))
        if default is not None:
            raise ArgumentError("default= goes with a mapping of layers; the precision given already says it all")
        if isinstance(value, Precision):
            return value
        if not _is_int(value):
            raise ArgumentError(
                f"a precision is an integer or a mapping from layer names to integers; got {value!r} "
                f"of type {type(value).__name__}"
            )
        return cls((), _check_width(value, "the network"))

    @property
    def is_uniform(self) -> bool:
        """Whether every layer runs at `default`."""
        return not self.layers

    def resolve(self, available: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """Return the width of every layer, after checking that the request can be met in full.

        Layers that were prepared at one single width (such as an 8-bit first layer) keep it unless they are named.

        Args:
            available: for every quantized layer, in order, the widths that it was prepared for.

        Raises:
            UnknownLayerError: a layer is named that is not in `available`.
            PrecisionError: a width was not prepared, or a layer is left without one.
        """
        requested = dict(self.layers)
        for name, bits in requested.items():
            if name not in available:
                raise UnknownLayerError(_unknown_layer(name, available))
            if bits not in available[name]:
                raise PrecisionError(_not_prepared(f"layer {name!r}", bits, available[name]))
        resolved: dict[str, int] = {}
        for name, widths in available.items():
            if name in requested:
                resolved[name] = requested[name]
            elif len(widths) == 1:
                resolved[name] = widths[0]
            elif self.default is None:
                raise PrecisionError(f"no width is given for layer {name!r}; name it or pass default=")
            elif self.default not in widths:
                raise PrecisionError(_not_prepared(f"layer {name!r}", self.default, widths))
            else:
                resolved[name] = self.default
        return resolved

    def to_json(self) -> int | dict[str, Any]:
        """Return an integer for a uniform precision, else {"layers": {…}, "default": …}.

        >>> Precision.of({"fc": 8}, default=4).to_json()
        {'layers': {'fc': 8}, 'default': 4}
        """
        if self.is_uniform and self.default is not None:
            return self.default
        return {"layers": dict(self.layers), "default": self.default}

    @classmethod
    def from_json(cls, value: object) -> Precision:
        """Rebuild a precision from `to_json`.

        Raises:
            ArgumentError, PrecisionError: `value` is not of that form.
        """
        if isinstance(value, Mapping):
            if set(value) != {"layers", "default"} or not isinstance(value["layers"], Mapping):
                raise PrecisionError(f"a per-layer precision has the keys 'layers' and 'default'; got {sorted(value)}")
            return cls.of(value["layers"], value["default"])
        return cls.of(value)  # pyright: ignore[reportArgumentType]  (checked by `of`)

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Read a precision from a command line: "4", or "conv1=8,fc=2,default=4".

        Raises:
            PrecisionError: the text is not of that form, or names a layer twice.

        >>> Precision.parse("conv1=8,default=4")
        Precision(layers=(('conv1', 8),), default=4)
        """
        layers: dict[str, int] = {}
        for item in text.split(","):
            name, _, bits = (part.strip() for part in item.rpartition("="))
            readable = bits.isascii() and bits.isdigit() and not set("=;") & set(name)
            if not readable or (name == "" and text.strip() != bits):
                raise PrecisionError(f"cannot read {text!r} as a precision; write 4, or layer=8,other=2,default=4")
            if name == "":
                return cls.of(int(bits))
            if name in layers:
                raise PrecisionError(f"{text!r} gives {name!r} twice")
            layers[name] = int(bits)
        default = layers.pop("default", None)
        return cls.of(layers, default)

    def __str__(self) -> str:
        if self.is_uniform and self.default is not None:
            return str(self.default)
        items = [f"{name}={bits}" for name, bits in self.layers]
        return ",".join(items if self.default is None else [*items, f"default={self.default}"])


def _not_prepared(what: str, bits: int, widths: tuple[int, ...]) -> str:
    return f"{what} was not prepared for {bits} bits; it can run at {', '.join(map(str, widths))}"


def _unknown_layer(name: str, available: Mapping[str, tuple[int, ...]]) -> str:
    close = get_close_matches(name, available, n=3)
    if close:
        hint = f"did you mean {', '.join(map(repr, close))}?"
    else:
        first = ", ".join(map(repr, list(available)[:8]))
        hint = f"the {len(available)} quantized layers are {first}{', …' if len(available) > 8 else ''}"
    return f"no quantized layer is called {name!r}; {hint}"

"""One precision of an engine, as an immutable value that a call reads from beginning to end."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from bitswitch.precision import Precision


@dataclass(frozen=True, eq=False)
class Configuration:
    """An engine at one precision. Switching makes another one and leaves those alone that calls are using.

    Attributes:
        precision: as it was asked for.
        widths: the width of every quantized layer, by name.
        norm_keys: which normalisation every per-width BatchNorm runs, by name; see `layers.norm.norm_key`.
        parts: what of the cache it may be made of: (name, width) pairs of layers and of weights.
        operands: what layers compute with; filled as they run, with what is the same whoever makes it.
        bound: what the executor's `bind` returned.
    """

    precision: Precision
    widths: Mapping[str, int]
    norm_keys: Mapping[str, str]
    parts: frozenset[tuple[str, int]] = frozenset()
    operands: dict[str, Any] = field(default_factory=dict)
    bound: Any = None


class Executor(Protocol):
    """How an engine runs its network."""

    def bind(self, widths: Mapping[str, int], norm_keys: Mapping[str, str]) -> Any:
        """Return what runs at these widths need; called once a configuration, before any call can see it.

        Args:
            widths: the width of every quantized layer; all planes that they need are there.
            norm_keys: which normalisation every per-width BatchNorm runs.
        """
        ...

    def run(self, configuration: Configuration, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the network once. Called by many threads at the same time."""
        ...

    def describe(self) -> str:
        """Return how the network is run, for people."""
        ...


class ModuleExecutor:
    """Runs the network module by module; every layer finds its own width in the configuration of the call.

    Args:
        network: the network, with integer layers.
        reason: why nothing faster runs it; empty if there is none.
    """

    def __init__(self, network: nn.Module, reason: str = "") -> None:
        self.network = network
        self.reason = reason

    def bind(self, widths: Mapping[str, int], norm_keys: Mapping[str, str]) -> None:
        """Nothing: layers bind themselves."""

    def run(self, configuration: Configuration, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: D102
        return self.network(*args, **kwargs)

    def describe(self) -> str:  # noqa: D102
        return f"module by module{': ' + self.reason if self.reason else ''}"


class Active:
    """Which configuration the modules of an engine belong to: that of the thread's call, else the live one."""

    def __init__(self) -> None:
        self.live: Configuration | None = None
        self.local = threading.local()

    def current(self) -> Configuration:
        """Return the configuration that this thread is running."""
        configuration = getattr(self.local, "configuration", None) or self.live
        assert configuration is not None
        return configuration

"""The layer table: what was decided for every layer of a model, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from torch import nn

from bitswitch.errors import ConfigError, PrepareError, UnknownLayerError
from bitswitch.precision import Precision

STATUSES = ("quantized", "float", "per-width")
INPUTS = ("unsigned", "signed", "float")
# The kind of a row that is not of a layer, but of one parameter of a module that is no layer of a known kind.
PARAMETER = "Parameter"


@dataclass(frozen=True)
class LayerEntry:
    """One row of the layer table.

    Attributes:
        name: the layer's name in the model; of a bare parameter the name of that.
        kind: its class before it was made switchable, such as "Conv2d"; "Parameter" for a matrix that no layer of a
            known kind has.
        status: "quantized", "float", or "per-width" for a BatchNorm with one set of parameters a width.
        reason: why a layer is float, or why it is pinned to one width; empty otherwise.
        shape: shape of its weight in the layer's own layout; () without one.
        bits: the widths that it can run at, descending; () for float layers. A single one means pinned.
        granularity: of the weight scale: "tensor", "channel" or "group"; "" unless quantized.
        group_size: inputs that share a scale, for "group".
        input: "unsigned", "signed" or "float": how its input is quantized.
        alias_of: name of the earlier layer that stores the weight which this one shares; both are quantized, or float.
        width_from: for a BatchNorm, the layer whose width it follows under a per-layer precision.
        width_to: for a transitional BatchNorm, the next layer, whose width it follows too.
        num_weights: of a float layer whose weights are not one of `shape`, such as an LSTM: how many it has that no
            earlier row has; None otherwise.
    """

    name: str
    kind: str
    status: str
    reason: str = ""
    shape: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    granularity: str = ""
    group_size: int | None = None
    input: str = "float"
    alias_of: str | None = None
    width_from: str | None = None
    width_to: str | None = None
    num_weights: int | None = None

    @property
    def own_weights(self) -> int:
        """Number of weights that count for this row: none for a BatchNorm, or if another layer stores them."""
        if self.num_weights is not None:
            return self.num_weights
        counts = bool(self.shape) and self.status != "per-width" and self.alias_of is None
        return math.prod(self.shape) if counts else 0


# Members of a row in JSON that are absent where they say nothing.
_OPTIONAL = ("width_to", "num_weights")


class LayerTable(Mapping[str, LayerEntry]):
    """The rows of a model by layer name, in the order of the model.

    Args:
        entries: the rows; names must be distinct.
    """

    def __init__(self, entries: Sequence[LayerEntry]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise ConfigError("the layer table names a layer twice")

    def __getitem__(self, name: str) -> LayerEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def select(self, status: str) -> list[LayerEntry]:
        """Return the rows of one status, in order."""
        return [entry for entry in self._entries.values() if entry.status == status]

    @property
    def available(self) -> dict[str, tuple[int, ...]]:
        """The widths of every quantized layer, as `Precision.resolve` takes them."""
        return {entry.name: entry.bits for entry in self.select("quantized")}

    def resolve(self, precision: Precision, network: nn.Module | None = None) -> dict[str, int]:
        """Do what `Precision.resolve` does, and say of a name that is no quantized layer's what it is.

        Args:
            precision: what is asked for.
            network: the network of this table, which knows the further names of modules that it has twice.

        Raises:
            UnknownLayerError: a layer is named that is not quantized.
            PrecisionError: a width was not prepared, or a layer is left without one.
        """
        available = self.available
        for name, _ in precision.layers:
            if name not in available:
                found = self._why_without_width(name) or self._first_name(name, network)
                if found:
                    raise UnknownLayerError(found)
        return precision.resolve(available)

    def _why_without_width(self, name: str) -> str:
        entry = self._entries.get(name)
        if entry is None or entry.status == "quantized":
            return ""
        if entry.status == "float":
            return f"layer {name!r} stays in full precision and has no widths: {entry.reason}"
        follows = "the network" if entry.width_from is None else f"layer {entry.width_from!r}"
        return f"the BatchNorm {name!r} has no width of its own: it follows {follows}"

    def _first_name(self, name: str, network: nn.Module | None) -> str:
        modules = dict(network.named_modules(remove_duplicate=False)) if isinstance(network, nn.Module) else {}
        first = next((n for n in self._entries if name in modules and modules.get(n) is modules[name]), None)
        if first is None:
            return ""
        why = self._why_without_width(first)
        return f"{name!r} is another name of layer {first!r}; " + (why or "name that")

    def to_json(self) -> list[dict[str, Any]]:
        """Return a list of plain dictionaries, without `width_to` and `num_weights` where they are None."""
        rows = [asdict(entry) | {"shape": list(entry.shape), "bits": list(entry.bits)} for entry in self.values()]
        return [{k: v for k, v in row.items() if k not in _OPTIONAL or v is not None} for row in rows]

    @classmethod
    def from_json(cls, rows: object) -> LayerTable:
        """Rebuild a table from `to_json`.

        Raises:
            ConfigError: a row has another form; the message names row and field.
        """
        if not isinstance(rows, list):
            raise ConfigError("the layer table must be a list")
        return cls([_entry_from_json(index, row) for index, row in enumerate(rows)])


def _entry_from_json(index: int, row: object) -> LayerEntry:
    names = [item.name for item in fields(LayerEntry) if item.name not in _OPTIONAL]
    if not isinstance(row, dict) or set(row).difference(_OPTIONAL) != set(names):
        raise ConfigError(f"row {index} of the layer table must have the fields {', '.join(names)}")

    def fail(name: str) -> ConfigError:
        return ConfigError(f"row {index} of the layer table: field {name!r} is invalid: {str(row[name])[:80]!r}")

    for name in ("name", "kind", "status", "reason", "granularity", "input"):
        if not isinstance(row[name], str):
            raise fail(name)
    for name in ("alias_of", "width_from"):
        if row[name] is not None and not isinstance(row[name], str):
            raise fail(name)
    if not isinstance(row.get("width_to", ""), str):
        raise fail("width_to")
    if type(row.get("num_weights", 0)) is not int or row.get("num_weights", 0) < 0:
        raise fail("num_weights")
    for name in ("shape", "bits"):
        if not isinstance(row[name], list) or not all(type(item) is int and item >= 0 for item in row[name]):
            raise fail(name)
    if row["group_size"] is not None and (type(row["group_size"]) is not int or row["group_size"] < 1):
        raise fail("group_size")
    for name, allowed in (("status", STATUSES), ("input", INPUTS)):
        if row[name] not in allowed:
            raise fail(name)
    return LayerEntry(**{**row, "shape": tuple(row["shape"]), "bits": tuple(row["bits"])})


class PlaneSource(Protocol):
    """Where a frozen model can read bit planes that it does not hold yet."""

    def refine(self, model: nn.Module, resolved: Mapping[str, int]) -> None:
        """Bring every layer up to the planes that its width needs, or raise and leave the model as it was."""
        ...


@dataclass(frozen=True)
class QuantizerOptions:
    """How the quantizers of a model learn and round; see `bitswitch.prepare`."""

    shared: bool = True
    scale_parametrization: str = "log"
    gradient_scale: bool = False
    midrise: tuple[int, ...] = ()
    activation_bits: tuple[tuple[int, int], ...] = ()


@dataclass
class ModelState:
    """What bitswitch remembers about a prepared model.

    Attributes:
        bits: the candidate widths of the network, descending.
        table: the layer table.
        precision: the active precision.
        options: how its quantizers learn.
        source: where missing bit planes can be read, for a model that was loaded.
        calibrated: whether `calibrate`, `load` or a state dict has set what the float network does not have.
        extracted_from: the source of the model that this one is a single precision of.
    """

    bits: tuple[int, ...]
    table: LayerTable
    precision: Precision
    options: QuantizerOptions = field(default_factory=QuantizerOptions)
    source: PlaneSource | None = None
    calibrated: bool = False
    extracted_from: PlaneSource | None = None


@dataclass
class EngineState(ModelState):
    """What bitswitch remembers about a deployed model.

    Attributes:
        switch_to: checks a precision and runs the engine at it from now on.
        note: returns how the network is run, for people.
    """

    switch_to: Callable[[Precision], None] = field(kw_only=True)
    note: Callable[[], str] = field(kw_only=True)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel or torch.compile wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        # Looking for an attribute that a module does not have takes several microseconds.
        elif "_orig_mod" in getattr(model, "_modules", ()):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        else:
            return model


def state_of(model: nn.Module, *, engines: bool = False) -> ModelState:
    """Return what bitswitch remembers about a prepared model, wrapped or not.

    Args:
        model: the model.
        engines: whether the caller can do with a deployed model as well.

    Raises:
        PrepareError: the model is not prepared, or not completely, or is an engine and the caller needs float weights.
    """
    state = unwrap(model).__dict__.get("_bitswitch")
    if isinstance(state, EngineState) and not engines:
        raise PrepareError(
            "this is an engine, which only runs; use the model that it was deployed from, or load the checkpoint again"
        )
    if isinstance(state, ModelState):
        return state
    if state is not None:
        raise PrepareError(
            "this model was prepared without example inputs and is not complete yet; call bitswitch.calibrate(model, "
            "batches), or pass example_inputs= to bitswitch.prepare"
        )
    inside = prepared_inside(model)
    if inside:
        raise PrepareError(f"this model is not prepared; the prepared network is its submodule {inside!r}; pass that")
    raise PrepareError("this model is not prepared; call bitswitch.prepare(model, bits=…) first")


def prepared_inside(model: nn.Module) -> str:
    """Return the name of the first submodule of a model that is a prepared network, or "" if none is."""
    if not isinstance(model, nn.Module):
        return ""
    names = [name for name, module in unwrap(model).named_modules() if name and "_bitswitch" in module.__dict__]
    return names[0] if names else ""

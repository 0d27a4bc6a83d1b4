"""config.json: what a checkpoint contains, checked before any of it is used."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from bitswitch._files import FileRecord, read_document, read_settled
from bitswitch._planes import planes_needed
from bitswitch.checkpoint.rows import MAX_CODES, check_table
from bitswitch.errors import BitswitchError, CheckpointError
from bitswitch.layers.table import LayerEntry, LayerTable, QuantizerOptions
from bitswitch.precision import Precision, validate_widths
from bitswitch.quantizers.weight import check_midrise

CONFIG_NAME = "config.json"
FORMAT = "bitswitch"
VERSION = 1

T = TypeVar("T")

_MEMBERS = {"format", "version", "bits", "layers", "options", "precision", "architecture", "weights", "base", "planes"}


@dataclass(frozen=True)
class StoredWeight:
    """How a quantized weight is stored.

    Attributes:
        shape: its out-first shape, in which codes and scales are laid out.
        planes: how many leading bit planes are stored; 0 if the base file has the weight: as integers if the layer is
            pinned to one width of several, as floats if widths do not share a scale.
    """

    shape: tuple[int, ...]
    planes: int

    @property
    def num_codes(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checked content of config.json.

    Attributes:
        bits: the candidate widths of the network, descending.
        table: the layer table.
        options: how the quantizers learn.
        precision: the precision to open at: the one that the checkpoint was saved for, else the highest width that the
            saved model held.
        architecture: whatever JSON the caller gave to find the architecture again.
        weights: how the weight of each quantized layer is stored; layers that share another's weight are absent.
        base: the file of everything that is not planes.
        planes: the files of the planes, from the top bit down.
    """

    bits: tuple[int, ...]
    table: LayerTable
    options: QuantizerOptions
    precision: Precision
    architecture: Any
    weights: Mapping[str, StoredWeight]
    base: FileRecord
    planes: tuple[FileRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the members of config.json."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "bits": list(self.bits),
            "layers": self.table.to_json(),
            "options": _options_json(self.options),
            "precision": self.precision.to_json(),
            "architecture": self.architecture,
            "weights": {n: {"shape": list(w.shape), "planes": w.planes} for n, w in self.weights.items()},
            "base": self.base.to_json(),
            "planes": [record.to_json() for record in self.planes],
        }

    @property
    def planes_id(self) -> int:
        """A number that tells the planes of this checkpoint from those of others, and is never 0."""
        digest = hashlib.sha256("".join(record.sha256 for record in self.planes).encode()).digest()
        return int.from_bytes(digest[:7], "big") + 1

    def storing(self, name: str) -> str:
        """Return the layer under whose name the weight of `name` is stored."""
        return self.table[name].alias_of or name

    def needed(self, resolved: Mapping[str, int]) -> dict[str, int]:
        """Return how many planes of each stored weight the given widths need; 0 for weights in the base file."""
        needed = dict.fromkeys(self.weights, 0)
        for name, bits in resolved.items():
            stored = self.storing(name)
            if self.weights[stored].planes:
                needed[stored] = max(needed[stored], self.planes_needed(name, bits))
        return needed

    def planes_needed(self, name: str, bits: int) -> int:
        """Return how many leading planes a layer needs to run at `bits` bits."""
        return planes_needed(self.table[name].bits[0], bits, self.options.midrise)


def read_config(folder: Path) -> CheckpointConfig:
    """Read and check the config.json of a checkpoint.

    Raises:
        CheckpointError: it is missing, altered, or inconsistent.
    """
    path = folder / CONFIG_NAME
    return parse_config(read_document(path), str(path))


def with_config(folder: Path, read: Callable[[CheckpointConfig], T]) -> T:
    """Return what `read` returns for the config.json of a checkpoint, also while another process saves there.

    Args:
        folder: the checkpoint.
        read: opens the data files; called again if they were replaced first, see `bitswitch._files.read_settled`.

    Raises:
        CheckpointError: as `read_config` and `read` do.
    """
    path = folder / CONFIG_NAME
    return read_settled(path, lambda members: read(parse_config(members, str(path))))


def parse_config(members: Mapping[str, Any], where: str) -> CheckpointConfig:
    """Check the members of config.json.

    Args:
        members: what `CheckpointConfig.to_json` returned, or somebody else wrote.
        where: what errors call the file.

    Raises:
        CheckpointError: naming the member that is wrong.
    """
    if members.get("format") != FORMAT:
        raise CheckpointError(f"{where}: format: expected {FORMAT!r}, found {str(members.get('format'))[:40]!r}")
    if type(members.get("version")) is not int or members["version"] != VERSION:
        raise CheckpointError(f"{where}: version: expected {VERSION}, found {str(members.get('version'))[:40]}")
    if set(members) != _MEMBERS:
        odd = sorted(set(members) ^ _MEMBERS)
        raise CheckpointError(f"{where}: expected exactly {', '.join(sorted(_MEMBERS))}; differs in {str(odd)[:200]}")
    try:
        if not isinstance(members["bits"], list):
            raise CheckpointError("bits: expected a list")
        bits = validate_widths(members["bits"])
        table = LayerTable.from_json(members["layers"])
        check_table(table, bits)
        options = _parse_options(members["options"], bits)
        precision = Precision.from_json(members["precision"])
        resolved = precision.resolve(table.available)
        weights = _parse_weights(members["weights"], table, bits, options)
    except BitswitchError as error:
        raise CheckpointError(f"{where}: {str(error)[:500]}") from None
    base = FileRecord.from_json(members["base"], "base", f"{where}: base")
    planes = _parse_planes(members["planes"], weights, where)
    config = CheckpointConfig(bits, table, options, precision, members["architecture"], weights, base, planes)
    for name, count in config.needed(resolved).items():
        if count > weights[name].planes:
            raise CheckpointError(
                f"{where}: precision: needs {count} planes of {name!r}, {weights[name].planes} stored"
            )
    return config


_OPTIONAL = ("midrise", "activation_bits")


def _options_json(options: QuantizerOptions) -> dict[str, Any]:
    members = asdict(options)
    midrise, inputs = (members.pop(name) for name in _OPTIONAL)
    if midrise:
        members["midrise"] = list(midrise)
    if inputs:
        members["activation_bits"] = {str(width): own for width, own in inputs}
    return members


def _parse_options(value: object, bits: tuple[int, ...]) -> QuantizerOptions:
    names = {item.name for item in fields(QuantizerOptions)}.difference(_OPTIONAL)
    if not isinstance(value, dict) or set(value).difference(_OPTIONAL) != names:
        raise CheckpointError(
            f"options: expected exactly {', '.join(sorted(names))}, and {' and '.join(_OPTIONAL)} where not empty"
        )
    for name in ("shared", "gradient_scale"):
        if not isinstance(value[name], bool):
            raise CheckpointError(f"options: {name}: expected true or false, found {str(value[name])[:40]}")
    if value["scale_parametrization"] not in ("log", "raw"):
        raise CheckpointError("options: scale_parametrization: expected 'log' or 'raw'")
    midrise = _parse_midrise(value["midrise"], bits, shared=value["shared"]) if "midrise" in value else ()
    inputs = _parse_activation_bits(value["activation_bits"]) if "activation_bits" in value else ()
    return QuantizerOptions(**{**value, "midrise": midrise, "activation_bits": inputs})


def _parse_activation_bits(value: object) -> tuple[tuple[int, int], ...]:
    widths = {str(width): width for width in range(8, 1, -1)}
    if not isinstance(value, dict) or not value or not set(value) <= set(widths):
        raise CheckpointError(f"options: activation_bits: expected widths by width, found {str(value)[:80]}")
    for width, own in value.items():
        if type(own) is not int or own == widths[width]:
            raise CheckpointError(
                f"options: activation_bits: expected another width than {width}, found {str(own)[:40]}"
            )
        validate_widths((own,))
    return tuple((width, value[name]) for name, width in widths.items() if name in value)


def _parse_midrise(value: object, bits: tuple[int, ...], *, shared: bool) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or list(validate_widths(value)) != value:
        raise CheckpointError(f"options: midrise: expected descending widths, found {str(value)[:80]}")
    check_midrise(tuple(value), bits, shared=shared)
    return tuple(value)


def has_planes(entry: LayerEntry, bits: tuple[int, ...], options: QuantizerOptions) -> bool:
    """Whether the weight of a layer is split into planes.

    A layer that is pinned to one width of several always needs all its bits, so they stay together in the base file.
    """
    return options.shared and (len(entry.bits) > 1 or len(bits) == 1)


def _parse_weights(
    value: object, table: LayerTable, bits: tuple[int, ...], options: QuantizerOptions
) -> dict[str, StoredWeight]:
    stored = [entry for entry in table.select("quantized") if entry.alias_of is None]
    if not isinstance(value, dict) or set(value) != {entry.name for entry in stored}:
        raise CheckpointError("weights: expected one entry for each quantized layer that stores a weight")
    return {
        entry.name: _parse_weight(value[entry.name], entry, options.midrise, split=has_planes(entry, bits, options))
        for entry in stored
    }


def _parse_weight(value: object, entry: LayerEntry, midrise: tuple[int, ...], *, split: bool) -> StoredWeight:
    where = f"weights: {entry.name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"shape", "planes"}:
        raise CheckpointError(f"{where}: expected exactly shape and planes")
    shape, planes = value["shape"], value["planes"]
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size <= MAX_CODES for size in shape):
        raise CheckpointError(f"{where}: shape: expected positive sizes, found {str(shape)[:80]}")
    if len(shape) != len(entry.shape) or math.prod(shape) != math.prod(entry.shape):
        raise CheckpointError(
            f"{where}: shape: {str(shape)[:80]} has not as many elements as the layer's {entry.shape}"
        )
    if entry.granularity == "group" and math.prod(shape[1:]) % (entry.group_size or 1):
        raise CheckpointError(f"{where}: shape: rows of {shape[:9]} do not divide into groups of {entry.group_size}")
    least = planes_needed(entry.bits[0], entry.bits[-1], midrise) if split else 0
    most = entry.bits[0] if split else 0
    if type(planes) is not int or not least <= planes <= most:
        raise CheckpointError(f"{where}: planes: expected {least} to {most}, found {str(planes)[:40]}")
    return StoredWeight(tuple(shape), planes)


def _parse_planes(value: object, weights: Mapping[str, StoredWeight], where: str) -> tuple[FileRecord, ...]:
    count = max((weight.planes for weight in weights.values()), default=0)
    if not isinstance(value, list) or len(value) != count:
        raise CheckpointError(f"{where}: planes: expected a list of {count} files")
    return tuple(
        FileRecord.from_json(item, f"plane-{index}", f"{where}: planes[{index}]") for index, item in enumerate(value)
    )

"""Which rows the layer table of a checkpoint may have."""

from __future__ import annotations

import math

from bitswitch.errors import CheckpointError
from bitswitch.layers.table import PARAMETER, LayerEntry, LayerTable
from bitswitch.precision import validate_widths
from bitswitch.quantizers import GRANULARITIES

MAX_CODES = 1 << 40
MAX_DIMENSIONS = 8


def check_table(table: LayerTable, bits: tuple[int, ...]) -> None:
    """Check that the rows of a layer table agree with each other and with the widths of the network.

    Raises:
        CheckpointError, PrecisionError: naming the row, or the width, that is wrong.
    """
    for entry in table.values():
        where = f"layers: {entry.name[:200]!r}"
        if len(entry.name) > 512 or "\0" in entry.name:
            raise CheckpointError(f"{where}: name: expected at most 512 characters without NUL")
        if len(entry.shape) > MAX_DIMENSIONS or math.prod(max(1, size) for size in entry.shape) > MAX_CODES:
            raise CheckpointError(f"{where}: shape: expected at most {MAX_CODES} elements, found {entry.shape[:9]}")
        if entry.status == "float":
            expected = entry.bits == ()
        else:
            expected = validate_widths(entry.bits) == entry.bits and (len(entry.bits) == 1 or entry.bits == bits)
        if not expected:
            raise CheckpointError(f"{where}: bits: {entry.bits} do not fit the widths {bits} and status {entry.status}")
        _check_count(entry, table, where)
        if entry.status == "quantized":
            _check_quantized(entry, table, where)
        if entry.width_from is not None:
            source = table.get(entry.width_from)
            if source is None or source.status != "quantized" or not set(source.bits) <= set(entry.bits):
                raise CheckpointError(
                    f"{where}: width_from: {entry.width_from[:200]!r} is no quantized layer of its widths"
                )
        elif entry.status == "per-width" and entry.bits != bits:
            raise CheckpointError(f"{where}: bits: expected {bits}, as width_from is null")
        if entry.width_to is not None:
            following = table.get(entry.width_to)
            if entry.width_from is None or following is None or following.status != "quantized":
                raise CheckpointError(
                    f"{where}: width_to: {entry.width_to[:200]!r} is no quantized layer after a width_from"
                )


def _check_count(entry: LayerEntry, table: LayerTable, where: str) -> None:
    """Check what says which weights a row counts, but for what only quantized layers have."""
    if entry.kind == PARAMETER and entry.status != "float":
        raise CheckpointError(f"{where}: status: expected 'float' for a parameter, found {entry.status!r}")
    count = entry.num_weights
    if count is not None and (entry.status != "float" or entry.alias_of is not None or count > MAX_CODES):
        raise CheckpointError(f"{where}: num_weights: expected it for float layers without alias_of, found {count}")
    if entry.alias_of is None or entry.status == "quantized":
        return
    target = table.get(entry.alias_of)
    stores = target is not None and target.status == "float" and target.alias_of is None and target.num_weights is None
    if entry.status != "float" or target is None or not stores:
        raise CheckpointError(f"{where}: alias_of: {entry.alias_of[:200]!r} is not a float layer that stores a weight")
    if not entry.shape or target.shape != entry.shape:
        raise CheckpointError(f"{where}: alias_of: {entry.alias_of[:200]!r} has another shape")


def _check_quantized(entry: LayerEntry, table: LayerTable, where: str) -> None:
    if entry.granularity not in GRANULARITIES:
        raise CheckpointError(
            f"{where}: granularity: expected one of {GRANULARITIES}, found {entry.granularity[:40]!r}"
        )
    if (entry.granularity == "group") != (entry.group_size is not None):
        raise CheckpointError(f"{where}: group_size: goes with the granularity 'group', found {entry.group_size}")
    if not entry.shape or 0 in entry.shape:
        raise CheckpointError(f"{where}: shape: expected a weight with elements, found {entry.shape}")
    if entry.alias_of is None:
        return
    target = table.get(entry.alias_of)
    if target is None or target.status != "quantized" or target.alias_of is not None:
        raise CheckpointError(
            f"{where}: alias_of: {entry.alias_of[:200]!r} is not a quantized layer that stores a weight"
        )
    if math.prod(target.shape) != math.prod(entry.shape) or target.bits != entry.bits:
        raise CheckpointError(f"{where}: alias_of: {entry.alias_of[:200]!r} has another shape or other bits")

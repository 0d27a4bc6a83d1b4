"""Save a switchable model as integers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch._files import SEAL_START, FileRecord, locked, remove_unreferenced, seal, write_document, write_tensors
from bitswitch._planes import pack_plane
from bitswitch.checkpoint.config import (
    CONFIG_NAME,
    CheckpointConfig,
    StoredWeight,
    has_planes,
    parse_config,
    read_config,
)
from bitswitch.checkpoint.contents import check_base, check_finite, codes_key, input_keys, weight_scale_keys
from bitswitch.checkpoint.plain_state import plain_state
from bitswitch.checkpoint.source import FolderPlanes
from bitswitch.errors import ArgumentError, CalibrationError, CheckpointError, MissingPlanesError
from bitswitch.layers.base import SwitchableLayer, layer_of
from bitswitch.layers.table import LayerEntry, ModelState, state_of, unwrap
from bitswitch.precision import Precision

_STEMS = r"base|plane-[0-7]"
_PLACEHOLDER = "0" * 64


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    precision: int | Mapping[str, int] | Precision | None = None,
    architecture: Any = None,
) -> None:
    """Save a model as one set of integers that serves every width; float weights are not stored.

    An earlier checkpoint in the folder is replaced at the very end, in one step: killed at any moment, `save` leaves
    the old one or the new one.

    Args:
        model: a prepared and calibrated model, wrapped in DistributedDataParallel or torch.compile or not.
        folder: where; it is created if needed. Files of other names in it are left alone.
        precision: store only the bit planes that this precision needs, and open at it by default. Lower widths can
            still be opened. Without it, all planes that the model holds are stored, and it opens at the highest width.
        architecture: any JSON that helps to build the float model again; `read_info` returns it.

    Raises:
        PrepareError, CalibrationError: the model is not prepared or not calibrated.
        PrecisionError, UnknownLayerError, ArgumentError: `precision` or `architecture` is invalid, or the tensors are
            more than a file holds, or have too many dimensions or too long names.
        MissingPlanesError: the model was opened from fewer planes than `precision` needs.
        CheckpointError: the model has values that cannot be stored (NaN, infinite parameters, state that is not a
            tensor, dtypes and layouts that files do not have), or the folder holds planes or widths of this very model
            that would be lost, or a config.json that is not a checkpoint's.
    """
    network = unwrap(model)
    state = state_of(network)
    layers = _storing_layers(network, state)
    opens_at = _highest(state, layers) if precision is None else Precision.of(precision)
    resolved = state.table.resolve(opens_at, network)
    weights = _stored_weights(state, layers, None if precision is None else resolved)
    try:
        seal({"architecture": architecture})
    except ArgumentError as error:
        raise ArgumentError(f"architecture= must be JSON: {error}") from None
    config = _draft(state, opens_at, architecture, weights)
    base = _base_tensors(network, state, config, layers)
    check_base(config, base, "the model")
    folder = Path(folder)
    with locked(folder):
        refuse_foreign(folder)
        _refuse_loss(folder, state, layers, weights)
        _write(folder, config, base, layers)


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder whose config.json is not a checkpoint's, such as that of a run; a damaged one may be replaced.

    Raises:
        CheckpointError: naming the file.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(len(SEAL_START))
    if start != SEAL_START:
        raise CheckpointError(
            f"{path} does not belong to a checkpoint, and saving there would replace it; save to another folder"
        )


def _write(
    folder: Path, config: CheckpointConfig, base: Mapping[str, Tensor], layers: Mapping[str, SwitchableLayer]
) -> None:
    record = write_tensors(folder, "base", base)
    planes = _write_planes(folder, config, layers)
    members = {**config.to_json(), "base": record.to_json(), "planes": [plane.to_json() for plane in planes]}
    # Nothing is put in the place of a good checkpoint that could not be opened.
    parse_config(members, "the new config.json")
    write_document(folder, CONFIG_NAME, members)
    remove_unreferenced(folder, _STEMS, {record.file, *(plane.file for plane in planes)})


def _highest(state: ModelState, layers: Mapping[str, SwitchableLayer]) -> Precision:
    """Return the highest width whose planes every layer holds; the active precision if there is no common one."""
    switchable = [layer for name, layer in layers.items() if len(state.table[name].bits) > 1]
    for bits in state.bits:
        if all(layer.num_planes >= layer.planes_needed(bits) for layer in switchable):
            return Precision.of(bits)
    return state.precision


def _draft(
    state: ModelState, opens_at: Precision, architecture: Any, weights: dict[str, StoredWeight]
) -> CheckpointConfig:
    """Return the configuration without its files, which are not written yet."""
    pending = FileRecord("", 8, _PLACEHOLDER)
    return CheckpointConfig(state.bits, state.table, state.options, opens_at, architecture, weights, pending, ())


def _storing_layers(network: nn.Module, state: ModelState) -> dict[str, SwitchableLayer]:
    """Return the layers that store a weight, checked before anything is written."""
    layers: dict[str, SwitchableLayer] = {}
    for entry in state.table.select("quantized"):
        layer = layer_of(network, entry.name)
        if entry.alias_of is None:
            layers[entry.name] = layer
            if not layer.is_frozen and not bool(layer.weight.detach().isfinite().all()):
                raise CheckpointError(f"the weight of layer {entry.name!r} has NaN or infinite values")
            continue
        if not _shares_weight(layer, layer_of(network, entry.alias_of)):
            raise CheckpointError(f"layer {entry.name!r} no longer shares its weight with {entry.alias_of!r}")
    return layers


def _shares_weight(layer: SwitchableLayer, owner: SwitchableLayer) -> bool:
    if layer.is_frozen != owner.is_frozen:
        return False
    if not layer.is_frozen:
        return layer.weight is owner.weight
    # Modules move their buffers one by one, so codes that were one tensor need not be one on another device.
    return layer.codes is owner.codes or torch.equal(layer.codes, owner.codes)


def _stored_weights(
    state: ModelState, layers: Mapping[str, SwitchableLayer], resolved: Mapping[str, int] | None
) -> dict[str, StoredWeight]:
    weights: dict[str, StoredWeight] = {}
    for name, layer in layers.items():
        shape = layer.codes.shape if layer.is_frozen else layer.out_first(layer.weight).shape
        if not has_planes(state.table[name], state.bits, state.options):
            weights[name] = StoredWeight(tuple(shape), 0)
            continue
        planes = layer.num_planes
        if resolved is not None:
            users = [entry.name for entry in state.table.select("quantized") if name in (entry.name, entry.alias_of)]
            planes = max(layer.planes_needed(resolved[user]) for user in users)
        if planes > layer.num_planes:
            raise MissingPlanesError(
                f"layer {name!r} needs {planes} bit planes, but the model was opened from {layer.num_planes}; "
                "switch to the precision first"
            )
        weights[name] = StoredWeight(tuple(shape), planes)
    return weights


def _base_tensors(
    network: nn.Module, state: ModelState, config: CheckpointConfig, layers: Mapping[str, SwitchableLayer]
) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, tensor in plain_state(network, shared=config.options.shared).items():
        plain[name] = tensor.detach()
        if isinstance(tensor, nn.Parameter):
            check_finite(name, plain[name], "the model")
    quantizers: dict[str, Tensor] = {}
    for entry in state.table.select("quantized"):
        layer = layer_of(network, entry.name)
        quantizers |= _quantizer_tensors(entry, layer, config)
        codes = codes_key(config, entry)
        if codes is not None:
            quantizers[codes] = _codes(layers[entry.name])
    clash = sorted(plain.keys() & quantizers.keys())
    if clash:
        raise CheckpointError(f"the model has a tensor of its own called {clash[0]!r}, a name that the format uses")
    return plain | quantizers


def _quantizer_tensors(entry: LayerEntry, layer: SwitchableLayer, config: CheckpointConfig) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for bits, name in weight_scale_keys(config, entry).items():
        tensors[name] = layer.weight_quantizer.scale_for(bits).value().detach()
    quantizer = layer.input_quantizer
    if quantizer is not None and not quantizer.calibrated:
        raise CalibrationError(
            f"the input of layer {entry.name!r} has no scales yet; call bitswitch.calibrate(model, batches) first"
        )
    for bits, (scale, zero_point) in input_keys(entry).items():
        assert quantizer is not None
        tensors[scale] = quantizer.scale_for(bits).value().detach()
        module = quantizer.zero_point_for(bits)
        if zero_point is not None and module is not None:
            tensors[zero_point] = module.value().detach().to(torch.int32)
    return tensors


def _codes(layer: SwitchableLayer) -> Tensor:
    return layer.weight_codes(layer.stored_bits).cpu()


def _write_planes(folder: Path, config: CheckpointConfig, layers: Mapping[str, SwitchableLayer]) -> list[FileRecord]:
    codes = {name: _codes(layers[name]) for name, weight in config.weights.items() if weight.planes}
    records: list[FileRecord] = []
    for index in range(max((weight.planes for weight in config.weights.values()), default=0)):
        stored = {name for name in codes if config.weights[name].planes > index}
        planes = {name: pack_plane(codes[name], layers[name].stored_bits, index) for name in stored}
        records.append(write_tensors(folder, f"plane-{index}", planes))
    return records


def _refuse_loss(
    folder: Path, state: ModelState, layers: Mapping[str, SwitchableLayer], weights: Mapping[str, StoredWeight]
) -> None:
    """Refuse to replace the checkpoint that a model was opened from by one with fewer planes or widths of it."""
    source = state.source or state.extracted_from
    if not isinstance(source, FolderPlanes):
        return
    own = source.is_in(folder)
    if own and state.extracted_from is not None and (folder / CONFIG_NAME).exists():
        raise CheckpointError(
            f"{folder}: the model was extracted from the checkpoint in this folder, and saving there would delete all "
            "other widths; save to another folder"
        )
    # Of a copy of the folder too, planes would be lost. A SubNet has a folder of its own, which it may save to again.
    listed = state.source is not None and _lists_planes_of(folder, source.config)
    if not own and not listed:
        return
    for name, layer in layers.items():
        held, stored = weights[name].planes, source.config.weights[name].planes
        if not layer.is_frozen or held >= stored:
            continue
        rest = [plane.file for plane in source.config.planes[held:stored]]
        # The next plane may be missing while later ones are there.
        if any(os.path.exists(folder / file) for file in rest):
            raise CheckpointError(
                f"{folder}: the model was opened from this checkpoint, and saving {held} bit planes of layer {name!r} "
                "there would delete the others; save to another folder, or switch to the stored width first"
            )
        if listed:
            raise CheckpointError(
                f"{folder}: the model was opened from this checkpoint, and after saving {held} bit planes of layer "
                f"{name!r} there the others would not fit any more: {', '.join(rest)}; save to another folder, or "
                "copy them there and switch to the stored width first"
            )


def _lists_planes_of(folder: Path, config: CheckpointConfig) -> bool:
    """Whether the checkpoint in a folder has the planes of `config`, whether their files are there or not."""
    try:
        return read_config(folder).planes == config.planes
    except CheckpointError:
        # None, or a damaged one, which may be replaced.
        return False

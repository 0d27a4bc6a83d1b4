"""Load a switchable model from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bitswitch.checkpoint.config import CheckpointConfig, with_config
from bitswitch.checkpoint.contents import codes_key, weight_scale_keys
from bitswitch.checkpoint.opening import open_network
from bitswitch.checkpoint.reader import read_codes
from bitswitch.checkpoint.source import FolderPlanes
from bitswitch.layers.base import layer_of
from bitswitch.layers.table import state_of
from bitswitch.precision import Precision
from bitswitch.switching import switch


def load(
    folder: str | os.PathLike[str],
    *,
    into: nn.Module,
    bits: int | Mapping[str, int] | Precision | None = None,
) -> nn.Module:
    """Open a checkpoint, reading only the bit planes that a precision needs.

    The loaded layers hold integer codes; `bitswitch.switch` reads further planes from the folder when they are needed,
    and `bitswitch.unfreeze` makes the model trainable again. If another process saves to the folder in the meantime, it
    is the old checkpoint that is loaded or the new one.

    Args:
        folder: a checkpoint written by `save`.
        into: a float model of the same architecture; it is copied and stays as it is. Its weights do not matter, and
            may be on the meta device.
        bits: the precision to open at; by default the highest width, or the `precision` that `save` was given.

    Returns:
        A switchable model of the class of `into`, on its device (the CPU instead of the meta device), in evaluation
        mode.

    Raises:
        MissingPlanesError: files of bit planes are not there; they are named.
        CheckpointError: a file is damaged, or the checkpoint belongs to another architecture.
        PrecisionError, UnknownLayerError, ArgumentError: `bits` is invalid, or `into` is not a module.
        PrepareError: `into` is prepared already.
    """
    folder = Path(folder)
    return with_config(folder, lambda config: _load(folder, config, into, bits))


def _load(
    folder: Path, config: CheckpointConfig, into: nn.Module, bits: int | Mapping[str, int] | Precision | None
) -> nn.Module:
    precision = config.precision if bits is None else Precision.of(bits)
    needed = config.needed(config.table.resolve(precision, into))
    model, scales = open_network(folder, config, into)
    codes = read_codes(folder, config, needed)
    _set_weights(model, config, scales, codes, needed)
    state = state_of(model)
    state.source = FolderPlanes(folder.absolute(), config)
    switch(model, precision)
    return model.eval()


def _set_weights(
    model: nn.Module,
    config: CheckpointConfig,
    scales: Mapping[str, Tensor],
    codes: Mapping[str, Tensor],
    needed: Mapping[str, int],
) -> None:
    placed: dict[str, Tensor] = {}
    for entry in config.table.select("quantized"):
        stored = config.table[config.storing(entry.name)]
        layer = layer_of(model, entry.name)
        if not config.options.shared:
            for bits, name in weight_scale_keys(config, entry).items():
                layer.weight_quantizer.scale_for(bits).set_(scales[name])
            continue
        name = codes_key(config, stored)
        if stored.name not in placed:
            # Layers that share a weight share the tensor of its codes as well.
            source = codes[stored.name] if name is None else scales[name]
            placed[stored.name] = source.to(layer.weight_quantizer.scale.parameter.device)
        num_planes = needed[stored.name] if name is None else stored.bits[0]
        (scale,) = (scales[key] for key in weight_scale_keys(config, stored).values())
        layer.set_codes(placed[stored.name], scale, num_planes, config.planes_id)

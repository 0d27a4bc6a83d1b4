"""Deploy a network: from trained or stored integers to a module that executes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from bitswitch.checkpoint.config import CheckpointConfig, with_config
from bitswitch.checkpoint.contents import codes_key, weight_scale_keys
from bitswitch.checkpoint.opening import open_network
from bitswitch.checkpoint.source import FolderPlanes
from bitswitch.errors import ArgumentError
from bitswitch.layers.base import iter_layers, layer_of
from bitswitch.layers.table import ModelState, state_of, unwrap
from bitswitch.precision import Precision
from bitswitch.runtime.cache import DerivedCache
from bitswitch.runtime.convert import check_deployable, copy_without, stored_weights, with_aliases
from bitswitch.runtime.engine import Engine
from bitswitch.runtime.stored import StoredWeight


def deploy(
    source: nn.Module | str | os.PathLike[str],
    *,
    into: nn.Module | None = None,
    bits: int | Mapping[str, int] | Precision | None = None,
    dynamic: bool = False,
    cache_bytes: int = 256 << 20,
    fuse: bool = True,
) -> Engine:
    """Return an engine that executes a network's integers: no float weights, one affine map after every integer sum.

    Quantized layers hold bit planes only and read those that a width needs. `bitswitch.switch(engine, 4)` changes the
    precision for later calls, `engine(x, precision=2)` that of one call. A network that `torch.fx` can trace runs as a
    graph in which convolutions pass integer codes on; `engine.plan` shows it, or why it does not. What was left in
    full precision, and everything else, runs as it is. Engines run on the CPU.

    Args:
        source: a prepared and calibrated model, trainable or loaded, which stays as it is; or the folder of a
            checkpoint, whose planes are memory-mapped and never unpacked as a whole.
        into: with a folder, a float model of the same architecture. It is copied without the weights that planes
            replace; build it under `torch.device("meta")` to never have them.
        bits: the precision to start at; by default that of the model, or the one that the checkpoint opens at.
        dynamic: run layers whose inputs were prepared to stay float (`activations=False`) as integers too: every row
            of their inputs (of a convolution: every image) is quantized to 8 bits with a scale of its own as it comes.
        cache_bytes: limit for what is derived from the planes and kept besides what the current precision needs, so
            that going back to an earlier precision is fast. Buffers that wait for the next call may take as much.
        fuse: run the network as a graph if possible; otherwise module by module, as one does to debug it.

    Returns:
        The engine.

    Raises:
        PrepareError, CalibrationError: the model is not prepared or not calibrated, inputs stay float and `dynamic` is
            not set, or widths do not share integers (`shared=False`).
        MissingPlanesError: planes that the precision needs are not there.
        CheckpointError: a file is damaged, or the checkpoint belongs to another architecture.
        PrecisionError, UnknownLayerError, ArgumentError: an argument is invalid.

    >>> import torch
    >>> import bitswitch as bs
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <...>
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.randn(16, 4)
    >>> model = bs.prepare(net, bits=(8, 4, 2), example_inputs=x)
    >>> bs.calibrate(model, [x])
    >>> engine = bs.deploy(model, bits=4)
    >>> bs.switch(model, 2)
    >>> torch.allclose(engine(x, precision=2), model(x), atol=1e-5), engine.precision.default
    (True, 4)
    """
    if isinstance(cache_bytes, bool) or not isinstance(cache_bytes, int) or cache_bytes < 0:
        raise ArgumentError(f"cache_bytes must be a number of bytes; got {cache_bytes!r}")
    cache = DerivedCache(cache_bytes)
    if isinstance(source, nn.Module):
        if into is not None:
            raise ArgumentError("into= goes with a folder; the model given already is one")
        return _deploy_model(source, bits, dynamic, cache, fuse)
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(f"deploy takes a model or the folder of a checkpoint; got {type(source).__name__}")
    if into is None:
        raise ArgumentError("deploying a folder needs into=, a float model of its architecture (on any device)")
    folder = Path(source)
    return with_config(folder, lambda config: _deploy_folder(folder, config, into, bits, dynamic, cache, fuse))


def _deploy_model(
    model: nn.Module, bits: int | Mapping[str, int] | Precision | None, dynamic: bool, cache: DerivedCache, fuse: bool
) -> Engine:
    network = unwrap(model)
    state = state_of(network)
    precision = state.precision if bits is None else Precision.of(bits)
    state.table.resolve(precision, network)
    check_deployable(network, state, dynamic=dynamic)
    weights = stored_weights(network, state, cache)
    reader = state.source if isinstance(state.source, FolderPlanes) else None
    own = copy_without(network, (layer for _, layer in iter_layers(network)), {id(state): None})
    return Engine(own, _starting_at(state, precision), weights, reader, cache, fuse=fuse)


def _deploy_folder(
    folder: Path,
    config: CheckpointConfig,
    into: nn.Module,
    bits: int | Mapping[str, int] | Precision | None,
    dynamic: bool,
    cache: DerivedCache,
    fuse: bool,
) -> Engine:
    precision = config.precision if bits is None else Precision.of(bits)
    config.table.resolve(precision, into)
    network, quantizers = open_network(folder, config, into)
    state = state_of(network)
    check_deployable(network, state, dynamic=dynamic)
    weights: dict[str, StoredWeight] = {}
    for name, stored in config.weights.items():
        entry = config.table[name]
        (scale,) = weight_scale_keys(config, entry).values()
        quantizer = layer_of(network, entry.name).weight_quantizer
        quantizer.scale.set_(quantizers[scale])
        form = {"stored_bits": entry.bits[0], "derived": cache, "midrise": quantizer.midrise}
        codes = codes_key(config, entry)
        if codes is None:
            weights[name] = StoredWeight(name, stored.shape, **form)
        else:
            weights[name] = StoredWeight.from_codes(name, quantizers.pop(codes), **form)
    reader = FolderPlanes(folder.absolute(), config)
    return Engine(network, _starting_at(state, precision), with_aliases(weights, state), reader, cache, fuse=fuse)


def _starting_at(state: ModelState, precision: Precision) -> ModelState:
    return ModelState(state.bits, state.table, precision, state.options, calibrated=True)

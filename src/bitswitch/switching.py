"""Switch a prepared model between precisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from bitswitch.errors import PrepareError
from bitswitch.layers.base import layer_of
from bitswitch.layers.norm import PerWidthNorm, norm_key
from bitswitch.layers.table import EngineState, ModelState, state_of, unwrap
from bitswitch.precision import Precision


def switch(model: nn.Module, precision: int | Mapping[str, int] | Precision, default: int | None = None) -> None:
    """Run every layer of a model at the given precision from now on.

    The request is checked in full before anything changes. A BatchNorm follows the layer that feeds it, and a
    transitional one the next layer too, see the layer table. A loaded model reads the bit planes that it does not hold
    yet.

    Args:
        model: a prepared model, wrapped in DistributedDataParallel or torch.compile or not, or an engine.
        precision: a width for all layers, a mapping from layer names to widths, or a `Precision`.
        default: with a mapping, the width of the layers that it does not name.

    Raises:
        PrepareError: the model is not prepared, or a layer of it was replaced afterwards.
        UnknownLayerError: a layer is named that the model does not have or that is not quantized.
        PrecisionError: a width was not prepared, or a layer is left without one.
        ArgumentError: the precision has a wrong type.
        MissingPlanesError: the files of bit planes that a width needs are not there.

    >>> import torch
    >>> import bitswitch as bs
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model = bs.prepare(net, bits=(8, 4, 2), example_inputs=torch.zeros(1, 4))
    >>> bs.switch(model, 2)
    >>> model[2].bits, model[2].weight_codes().unique().tolist()
    (2, [-2, -1, 0, 1])
    >>> bs.switch(model, 3)
    Traceback (most recent call last):
    ...
    bitswitch.errors.PrecisionError: layer '2' was not prepared for 3 bits; it can run at 8, 4, 2
    """
    network = unwrap(model)
    state = state_of(network, engines=True)
    requested = Precision.of(precision, default)
    if isinstance(state, EngineState):
        state.switch_to(requested)
        return
    resolved = state.table.resolve(requested, network)
    if state.source is not None:
        state.source.refine(network, resolved)
    _apply(network, state, requested, resolved)


def _apply(network: nn.Module, state: ModelState, precision: Precision, resolved: Mapping[str, int]) -> None:
    layers = [(layer_of(network, name), bits) for name, bits in resolved.items()]
    norms = [(_norm_of(network, name), key) for name, key in norm_keys(state, precision, resolved).items()]
    for layer, bits in layers:
        layer.bits = bits
    for norm, key in norms:
        norm.key = key
    state.precision = precision


def _norm_of(network: nn.Module, name: str) -> PerWidthNorm:
    norm = network.get_submodule(name)
    if not isinstance(norm, PerWidthNorm):
        raise PrepareError(
            f"the BatchNorm {name!r} has been replaced by a {type(norm).__name__}, which has no copies for the widths; "
            "convert BatchNorms before bitswitch.prepare"
        )
    return norm


def norm_keys(state: ModelState, precision: Precision, resolved: Mapping[str, int]) -> dict[str, str]:
    """Return the `norm_key` of every per-width BatchNorm, given the widths of the layers."""
    fallback = precision.default if precision.default in state.bits else state.bits[0]
    return {
        entry.name: norm_key(
            fallback if entry.width_from is None else resolved[entry.width_from],
            None if entry.width_to is None else resolved[entry.width_to],
        )
        for entry in state.table.select("per-width")
    }


@contextmanager
def at(
    model: nn.Module, precision: int | Mapping[str, int] | Precision, default: int | None = None
) -> Iterator[nn.Module]:
    """Run a model at the given precision inside the context; afterwards, also after an exception, at the one before.

    Args:
        model: a prepared model, or an engine.
        precision: as in `switch`.
        default: as in `switch`.

    Yields:
        The model.

    Raises:
        As `switch`, before the context is entered.
    """
    before = state_of(model, engines=True).precision
    switch(model, precision, default)
    try:
        yield model
    finally:
        switch(model, before)

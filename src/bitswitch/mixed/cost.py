"""What each layer of a prepared model costs at each width: bits, bytes, BitOPs, time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitswitch._planes import planes_needed
from bitswitch._prepare import call
from bitswitch.errors import ArgumentError, ConfigError
from bitswitch.layers.base import SwitchableLayer, float_forward, layer_of
from bitswitch.layers.modes import in_mode
from bitswitch.layers.table import state_of, unwrap
from bitswitch.precision import Precision

# What a float operand counts in BitOPs.
FLOAT_BITS = 32

_NOTHING: tuple[int, int] = (0, 0)

LatencyTable = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class LayerCost:
    """What one quantized layer costs.

    Attributes:
        name: of the layer.
        bits: the widths that it was prepared for, descending.
        num_weights: of its weight; 0 if another layer stores the weight.
        num_macs: multiplications of one run on the example inputs, over all calls of the layer; None without such a
            run.
        num_inputs: elements of its input in that run; None without.
        float_input: whether its input stays float, so that a multiplication costs `FLOAT_BITS` × the weight's width.
        seconds: measured time by width; None without a latency table.
        owner: name of the layer that stores the weight, which has the same width.
        shared: whether all widths have one scale, so that the weight is stored as bit planes.
        midrise: widths whose levels are (c + ½) · s.
        activation_bits: {width: width of the input}, where the two differ.
    """

    name: str
    bits: tuple[int, ...]
    num_weights: int
    num_macs: int | None = None
    num_inputs: int | None = None
    float_input: bool = False
    seconds: Mapping[int, float] | None = None
    owner: str = ""
    shared: bool = True
    midrise: tuple[int, ...] = ()
    activation_bits: Mapping[int, int] = field(default_factory=dict)

    @property
    def stored_by(self) -> str:
        """Name of the layer that stores the weight: `owner`, or this one."""
        return self.owner or self.name

    def weight_bytes(self, bits: int) -> int:
        """Return the bytes of the bit planes that a width needs, as a checkpoint for that width alone stores them.

        Below the stored width that is one plane more than the width has bits, unless it is mid-rise: the one that
        decides the rounding.
        """
        if not self.shared:
            return 4 * self.num_weights
        return planes_needed(self.bits[0], bits, self.midrise) * math.ceil(self.num_weights / 8)

    def bitops(self, bits: int) -> int | None:
        """Return multiplications × weight width × input width; None if the multiplications are not known."""
        if self.num_macs is None:
            return None
        return self.num_macs * bits * (FLOAT_BITS if self.float_input else self.activation_bits.get(bits, bits))


@dataclass(frozen=True)
class Cost:
    """What a precision costs over all quantized layers.

    Attributes:
        average_bits: plain mean width over the layers that have a choice, as the paper counts; over all quantized
            layers if none has one. So the uniform precision b has the average b.
        weighted_bits: mean width of those layers weighted by their numbers of weights.
        weight_bytes: of the weights of the whole network as `bitswitch.summary` counts them: the bit planes that are
            needed, and float32 for layers that stay float.
        bitops: multiplications × weight width × input width of one run on the example inputs, over the quantized
            layers; None without example inputs.
        latency: seconds from the latency table, over the layers in it; None without.
    """

    average_bits: float
    weighted_bits: float
    weight_bytes: int
    bitops: int | None = None
    latency: float | None = None


@dataclass(frozen=True)
class CostTable:
    """The costs of all quantized layers of a model, from `measure_costs`.

    Attributes:
        layers: by name, in the order of the model.
        float_bytes: bytes of the weights of the layers that stay float, recurrent ones included, and of the matrices
            of other modules; shared ones count once.
    """

    layers: Mapping[str, LayerCost]
    float_bytes: int = 0

    @property
    def available(self) -> dict[str, tuple[int, ...]]:
        """The widths of every layer, as `Precision.resolve` takes them."""
        return {name: layer.bits for name, layer in self.layers.items()}

    @property
    def counted(self) -> list[LayerCost]:
        """The layers that average widths are taken over: those with a choice, or all if none has one."""
        return [self.layers[name] for name in with_choice(self.available)]

    @property
    def groups(self) -> list[list[LayerCost]]:
        """The layers by stored weight; layers that share one have one width."""
        groups: dict[str, list[LayerCost]] = {}
        for layer in self.layers.values():
            groups.setdefault(layer.stored_by, []).append(layer)
        return list(groups.values())

    def of(self, precision: int | Mapping[str, int] | Precision) -> Cost:
        """Return what a precision costs.

        Raises:
            PrecisionError, UnknownLayerError: it does not fit the model.
        """
        widths = Precision.of(precision).resolve(self.available)
        counted = self.counted
        weights = sum(layer.num_weights for layer in counted)
        bitops = [layer.bitops(widths[layer.name]) for layer in self.layers.values()]
        # Of layers that share a weight the planes are stored that any of them needs.
        stored: dict[str, int] = {}
        for layer in self.layers.values():
            owner = self.layers[layer.stored_by]
            stored[owner.name] = max(stored.get(owner.name, 0), owner.weight_bytes(widths[layer.name]))
        timed = [layer.seconds[widths[layer.name]] for layer in self.layers.values() if layer.seconds is not None]
        return Cost(
            average_bits=average_bits(widths, self.available),
            weighted_bits=sum(widths[layer.name] * layer.num_weights for layer in counted) / max(1, weights),
            weight_bytes=self.float_bytes + sum(stored.values()),
            bitops=None if None in bitops else sum(value or 0 for value in bitops),
            latency=sum(timed) if timed else None,
        )


def with_choice(available: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the layers that average widths are taken over: those with a choice, or all if none has one.

    Args:
        available: for every quantized layer the widths that it was prepared for.
    """
    return [name for name, widths in available.items() if len(widths) > 1] or list(available)


def average_bits(widths: Mapping[str, int], available: Mapping[str, tuple[int, ...]]) -> float:
    """Return the plain mean width over the layers with a choice, the paper's budget; pinned layers do not count.

    Args:
        widths: of every quantized layer.
        available: for every quantized layer the widths that it was prepared for.

    >>> average_bits({"first": 8, "a": 4, "b": 2}, {"first": (8,), "a": (4, 2), "b": (4, 2)})
    3.0
    """
    counted = with_choice(available)
    return sum(widths[name] for name in counted) / len(counted)


def measure_costs(
    model: nn.Module, example_inputs: Any = None, *, latency_table: LatencyTable | None = None
) -> CostTable:
    """Return what every quantized layer of a prepared model costs at every width.

    Args:
        model: a prepared model.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments for one forward pass,
            in which multiplications are counted; give one example for numbers of one example. Without it there are no
            BitOPs.
        latency_table: {layer: {width: seconds}}, measured with an engine of choice; see `additive_latency`.

    Raises:
        PrepareError: the model is not prepared.
        ConfigError: the latency table names an unknown layer, lacks a width or has a time that is no time; no layer
            ran on the example inputs.
    """
    table, options = state_of(model).table, state_of(model).options
    network = unwrap(model)
    traced = None if example_inputs is None else _count_macs(network, table.available, example_inputs)
    times = _checked_times(latency_table, table.available)
    layers = {
        entry.name: LayerCost(
            name=entry.name,
            bits=entry.bits,
            num_weights=entry.own_weights,
            num_macs=None if traced is None else traced[entry.name][0],
            num_inputs=None if traced is None else traced[entry.name][1],
            float_input=entry.input == "float",
            seconds=times.get(entry.name),
            owner=entry.alias_of or entry.name,
            shared=options.shared,
            midrise=options.midrise,
            activation_bits=dict(options.activation_bits),
        )
        for entry in table.select("quantized")
    }
    return CostTable(layers, 4 * sum(entry.own_weights for entry in table.select("float")))


def _count_macs(network: nn.Module, names: Mapping[str, Any], inputs: Any) -> dict[str, tuple[int, int]]:
    """Return (multiplications, input elements) of every layer in one forward pass of the float network."""
    counts: dict[str, tuple[int, int]] = dict.fromkeys(names, _NOTHING)
    handles = []
    for name in names:
        layer = layer_of(network, name)

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            given = next(leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            macs, elements = counts[name]
            counts[name] = macs + _macs_of_call(network.get_submodule(name), given, output), elements + given.numel()

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        with in_mode(network, training=False), torch.no_grad(), float_forward(network):
            call(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not any(elements for _, elements in counts.values()):
        raise ConfigError("no quantized layer ran on the example inputs")
    return counts


def _macs_of_call(layer: nn.Module, given: Tensor, output: Tensor) -> int:
    """Return the multiplications of one call: every output (of a transposed convolution, input) meets a filter."""
    if isinstance(layer, nn.Embedding):
        return 0
    assert isinstance(layer, SwitchableLayer)
    shape = layer.weight.shape
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return given.numel() * math.prod(shape[1:])
    out_channels = layer.out_first(layer.weight).shape[0]
    return output.numel() * (math.prod(shape) // out_channels)


def _checked_times(table: LatencyTable | None, available: Mapping[str, tuple[int, ...]]) -> dict[str, dict[int, float]]:
    if table is None:
        return {}
    unknown = [name for name in table if name not in available]
    if unknown:
        raise ConfigError(f"the latency table has {unknown[0]!r}, which is no quantized layer of this model")
    checked: dict[str, dict[int, float]] = {}
    for name, widths in available.items():
        times = table.get(name)
        if times is None:
            raise ConfigError(f"the latency table lacks layer {name!r}")
        for bits in widths:
            seconds = times.get(bits)
            if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not math.isfinite(seconds):
                raise ConfigError(f"the latency table has no time for layer {name!r} at {bits} bits: {seconds!r}")
        checked[name] = {bits: float(times[bits]) for bits in widths}
    return checked


def additive_latency(
    measure: Callable[[Precision], float], available: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[int, float]]:
    """Measure a latency table: what each layer adds at each width when all others run at their highest.

    The times of a layer are those of the whole network with this layer changed, less the time of all others' share:
    t_l(b) = T(l at b, others at their highest) − T(all at their highest)·(L − 1)/L. So the table sums to what was
    measured for the base, and differences between widths are measured ones.

    Args:
        measure: runs the network at a precision, as an engine does, and returns seconds.
        available: the widths of every layer: `CostTable.available`.

    Raises:
        ArgumentError: there are no layers.
    """
    if not available:
        raise ArgumentError("there are no layers to measure")
    highest = {name: widths[0] for name, widths in available.items()}
    base = measure(Precision.of(highest))
    others = base * (len(available) - 1) / len(available)
    return {
        name: {
            bits: (base if bits == widths[0] else measure(Precision.of({**highest, name: bits}))) - others
            for bits in widths
        }
        for name, widths in available.items()
    }

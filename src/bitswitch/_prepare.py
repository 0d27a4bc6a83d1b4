"""Make a float model switchable."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, Literal

from torch import nn

from bitswitch._fits import check_fits, check_parameter
from bitswitch._initial import initialize_weight_scale
from bitswitch._plan import Request, Selector, build_table, check_granularity, selectors, weighted_nodes
from bitswitch._trace import trace
from bitswitch.errors import ArgumentError, BitswitchError, PrepareError
from bitswitch.layers.adapters import adapt
from bitswitch.layers.base import iter_layers, layer_of
from bitswitch.layers.held import planes_in
from bitswitch.layers.norm import make_per_width
from bitswitch.layers.registry import make_switchable, switchable_class
from bitswitch.layers.table import (
    PARAMETER,
    LayerEntry,
    LayerTable,
    ModelState,
    QuantizerOptions,
    prepared_inside,
    state_of,
    unwrap,
)
from bitswitch.precision import Precision, validate_widths
from bitswitch.quantizers import ActivationQuantizer, WeightQuantizer
from bitswitch.quantizers.weight import check_midrise


def prepare(
    model: nn.Module,
    bits: Collection[int] = (8, 6, 4, 2),
    *,
    example_inputs: Any = None,
    skip: Selector | Collection[Selector] = (),
    force: Selector | Collection[Selector] = (),
    first_last: Literal["float", 8] = "float",
    granularity: str | Mapping[str, str] = "tensor",
    group_size: int | None = None,
    activations: bool = True,
    batch_norm: Literal["per-width", "transitional"] = "per-width",
    shared: bool = True,
    scale_parametrization: Literal["log", "raw"] = "log",
    gradient_scale: bool = False,
    midrise: Collection[int] = (),
    activation_bits: Mapping[int, int] | None = None,
) -> nn.Module:
    """Return a switchable copy of a float model.

    The model is run once, in evaluation mode and without gradients, to see which layers come first and last, what feeds
    what, and which inputs cannot be negative. Weight scales are set from the weights; activation scales need data, see
    `bitswitch.calibrate`. The copy starts at the largest width.

    Args:
        model: any module; it is copied and stays as it is.
        bits: the candidate widths, 2…8, in any order; the largest is the one that is stored.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments for one forward pass.
            Without it, the model is completed by the first batch given to `bitswitch.calibrate`.
        skip: layers to leave in full precision: names, name patterns such as "layer1.*" (a name also covers what is
            inside it), or classes. Matrices that are bare parameters of other modules always stay so; skipped, they
            are not named in the warning.
        force: layers to quantize although they are first or last, selected in the same way; takes precedence over skip.
        first_last: "float" leaves the first and last layers in full precision, as the paper does; 8 pins them to 8
            bits.
        granularity: of the weight scales: "tensor" (the paper's), "channel" (per output channel), "group" (groups of
            `group_size` along the input), or a mapping from name patterns to these.
        group_size: for granularity "group"; it must divide the inputs of every output channel.
        activations: quantize the inputs of the layers too, at the width of the weight if `activation_bits` says nothing
            else.
        batch_norm: "per-width" gives every BatchNorm parameters and statistics of each width, "transitional" of each
            pair of its own width and that of the next quantized layer, for networks whose layers have different
            widths (Bit-Mixer, as in Algorithm A.3). Where ways part, the next layer is the one executed first.
        shared: one weight scale for all widths. False is the comparison mode in which every width has its own scale and
            the stored model stays float.
        scale_parametrization: "log" learns ln s, "raw" learns s as in the paper.
        gradient_scale: multiply scale gradients by LSQ's 1/√(N·p).
        midrise: those of `bits` at which the levels of a weight are the odd multiples of half its step, … −½, ½, 3⁄2 …,
            instead of the multiples … −1, 0, 1 …: symmetric, without zero (so the `padding_idx` row of an embedding is
            not zero there), and stored in one bit plane less. Widths of at most 7 bits, and not the largest of several
            that share a scale. Not in the paper.
        activation_bits: {width of the weights: width of their inputs}, 2…8, for those of `bits` where the two differ:
            {2: 4} for 4-bit inputs of 2-bit weights, also of layers that are pinned to one of them. The paper has equal
            widths. Files do not hold inputs, and engines compute with 8-bit codes whatever their range is.

    Returns:
        The switchable copy, of the same class.

    Raises:
        PrepareError: the model is prepared already, or is wrapped in DataParallel, torch.compile or the like; a
            selector matches nothing, a forced layer cannot be quantized, a width cannot be mid-rise, or no layer is
            left to quantize.
        PrecisionError, ArgumentError: `bits`, `activation_bits` or another argument is invalid.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model = prepare(net, bits=(8, 4, 2), example_inputs=torch.zeros(1, 4))
    >>> model[2].extra_repr(), isinstance(model[2], nn.Linear)
    ('in_features=8, out_features=8, bias=True, bits=8 of (8, 4, 2)', True)
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"prepare takes a torch.nn.Module; got {type(model).__name__}")
    inside = prepared_inside(model)
    if inside or "_bitswitch" in unwrap(model).__dict__ or any(True for _ in iter_layers(model)):
        which = f" (the prepared network is its submodule {inside!r})" if inside else ""
        raise PrepareError(f"this model is prepared already{which}; prepare the float model instead")
    _refuse_wrapper(model)
    if first_last not in ("float", 8):
        raise PrepareError(f"first_last must be 'float' or 8; got {first_last!r}")
    if scale_parametrization not in ("log", "raw"):
        raise PrepareError(f"scale_parametrization must be 'log' or 'raw'; got {scale_parametrization!r}")
    if batch_norm not in ("per-width", "transitional"):
        raise PrepareError(f"batch_norm must be 'per-width' or 'transitional'; got {batch_norm!r}")
    widths = validate_widths(bits)
    midrise = _midrise(midrise)
    if not set(midrise) <= set(widths):
        raise PrepareError(f"midrise: {midrise} are not among the widths {widths}")
    check_midrise(midrise, widths, shared=shared)
    inputs = check_activation_bits({} if activation_bits is None else activation_bits, widths, activations=activations)
    default_granularity, granularity_of = check_granularity(granularity)
    request = Request(
        bits=widths,
        skip=selectors("skip", skip),
        force=selectors("force", force),
        first_last=first_last,
        granularity=default_granularity,
        group_size=group_size,
        granularity_of=granularity_of,
        activations=activations,
        batch_norm=batch_norm,
        options=QuantizerOptions(shared, scale_parametrization, gradient_scale, midrise, inputs),
    )
    model = copy.deepcopy(model)
    adapt(model)
    if example_inputs is None:
        model.__dict__["_bitswitch"] = request
    else:
        complete(model, request, lambda network: call(network, example_inputs))
    return model


def _refuse_wrapper(model: nn.Module) -> None:
    # What is remembered about a model is remembered about the network inside.
    if unwrap(model) is not model:
        kind = type(model).__name__
        raise PrepareError(f"this model is wrapped in {kind}; take the network inside, and wrap the switchable one")


def _midrise(given: Collection[int]) -> tuple[int, ...]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Collection):
        raise ArgumentError(f"midrise must be a collection of widths such as (2,); got {given!r}")
    return validate_widths(given) if given else ()


def check_activation_bits(
    given: Mapping[int, int], bits: tuple[int, ...], *, activations: bool
) -> tuple[tuple[int, int], ...]:
    """Return (width of weights, another width of their inputs) pairs, descending.

    Raises:
        ArgumentError: it is no mapping.
        PrecisionError: a width is not 2…8.
        PrepareError: a width is no candidate, or inputs are not quantized.
    """
    if not isinstance(given, Mapping):
        raise ArgumentError(f"activation_bits must be a mapping such as {{2: 4}}; got {given!r}")
    if given and not activations:
        raise PrepareError("activation_bits: inputs stay float with activations=False")
    for width, own in given.items():
        if width not in bits:
            raise PrepareError(f"activation_bits: {width!r} is not among the widths {bits}")
        try:
            validate_widths((own,))
        except BitswitchError as error:
            raise type(error)(f"activation_bits: {error}") from None
    return tuple((width, given[width]) for width in bits if given.get(width, width) != width)


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model on a tensor, a tuple of positional arguments or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def complete(model: nn.Module, request: Request, run: Any) -> None:
    """Trace an adapted float model, decide its layer table, and make it switchable in place."""
    graph = trace(model, weighted_nodes(model), run)
    table = build_table(model, graph, request)
    _install(model, table, request.bits, request.options)
    for name in table.available:
        layer = layer_of(model, name)
        if table[name].alias_of is None:
            try:
                initialize_weight_scale(layer)
            except PrepareError as error:
                raise PrepareError(f"layer {name!r}: {error}") from None


def apply_table(
    model: nn.Module, table: LayerTable, bits: tuple[int, ...], options: QuantizerOptions | None = None
) -> None:
    """Turn a float model in place into the switchable model that a layer table describes, with scales not yet set.

    Args:
        model: float model of the architecture that the table was made for.
        table: the layer table.
        bits: the candidate widths of the network, descending.
        options: how its quantizers learn.

    Raises:
        PrepareError: the model does not fit; the message names the layer. The model is unchanged but for adapters.
            Or it is wrapped.
    """
    _refuse_wrapper(model)
    adapt(model)
    _install(model, table, bits, options or QuantizerOptions())


def _install(model: nn.Module, table: LayerTable, bits: tuple[int, ...], options: QuantizerOptions) -> None:
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    quantizers: dict[str, WeightQuantizer] = {}
    for entry in table.values():
        if entry.kind == PARAMETER:
            check_parameter(entry, parameters)
            continue
        check_fits(entry, modules, table)
        if entry.status == "quantized":
            quantizers[entry.name] = _weight_quantizer(modules[entry.name], entry, options)
    for entry in table.values():
        if entry.status == "per-width":
            to = None if entry.width_to is None else table[entry.width_to].bits
            make_per_width(modules[entry.name], entry.bits, to)
        elif entry.status == "quantized":
            module = modules[entry.name]
            quantizer = quantizers[entry.alias_of or entry.name]
            make_switchable(module, quantizer, _input_quantizer(entry, options, module))
    model.__dict__["_bitswitch"] = ModelState(bits, table, Precision.of(bits[0]), options)
    model.register_load_state_dict_pre_hook(_check_planes)
    model.register_load_state_dict_post_hook(_note_loaded)


def _check_planes(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """Refuse a state with codes that a layer cannot take before any layer has taken its own."""
    for name, layer in iter_layers(model):
        planes_in(layer, state_dict, f"{prefix}{name}." if name else prefix)


def _note_loaded(model: nn.Module, incompatible_keys: Any) -> None:
    """Take a complete state with activation scales for one of a calibrated model."""
    state = model.__dict__.get("_bitswitch")
    if state is None:
        # An engine's network, which has been calibrated already.
        return
    quantizers = [layer.input_quantizer for _, layer in iter_layers(model)]
    if not incompatible_keys.missing_keys and all(q is None or q.calibrated for q in quantizers):
        state.calibrated = True


def _weight_quantizer(module: nn.Module, entry: LayerEntry, options: QuantizerOptions) -> WeightQuantizer:
    weight = module._parameters["weight"]
    assert weight is not None
    switchable = switchable_class(type(module))
    assert switchable is not None
    # The layer is not of that class yet, but has all that its layout depends on.
    out_first = switchable.out_first(module, weight)  # pyright: ignore[reportArgumentType]
    try:
        quantizer = WeightQuantizer(
            out_first.shape,
            entry.bits,
            entry.granularity,  # pyright: ignore[reportArgumentType]  (checked there)
            entry.group_size,
            shared=options.shared,
            parametrization=options.scale_parametrization,  # pyright: ignore[reportArgumentType]
            gradient_scale=options.gradient_scale,
            midrise=tuple(b for b in options.midrise if b in entry.bits),
        )
    except PrepareError as error:
        raise PrepareError(f"layer {entry.name!r}: {error}") from None
    return quantizer if weight.is_meta else quantizer.to(weight.device)


def _input_quantizer(entry: LayerEntry, options: QuantizerOptions, module: nn.Module) -> ActivationQuantizer | None:
    if entry.input == "float":
        return None
    quantizer = ActivationQuantizer(
        entry.bits,
        signed=entry.input == "signed",
        parametrization=options.scale_parametrization,  # pyright: ignore[reportArgumentType]
        gradient_scale=options.gradient_scale,
        layer_name=entry.name,
        input_bits=dict(options.activation_bits),
    )
    weight = module._parameters["weight"]
    assert weight is not None
    return quantizer if weight.is_meta else quantizer.to(weight.device)


def unfreeze(model: nn.Module) -> None:
    """Make a loaded model trainable again: every stored layer gets a float weight, the dequantized integers.

    Weights have the type that they have in the float network. Outputs at every width stay bit-identical.

    Args:
        model: a prepared model; layers that are trainable already are left alone.

    Raises:
        PrepareError: the model is not prepared, or a layer was opened from fewer than all of its planes; nothing
            changes then.
    """
    state = state_of(model)
    layers = list(iter_layers(unwrap(model)))
    for name, layer in layers:
        if layer.is_frozen and layer.num_planes < layer.stored_bits:
            raise PrepareError(
                f"layer {name!r} was opened from {layer.num_planes} of {layer.stored_bits} bit planes; switch to "
                f"{layer.stored_bits} bits first"
            )
    parameters: dict[int, nn.Parameter] = {}
    for _, layer in layers:
        layer.unfreeze()
        # Layers that share a weight share its quantizer, and must share the new parameter as well.
        shared = parameters.setdefault(id(layer.weight_quantizer), layer.weight)
        if layer.weight is not shared:
            layer.weight = shared
    state.source = None

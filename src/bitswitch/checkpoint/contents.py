"""Which tensors the files of a checkpoint must contain, and which values are acceptable in them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bitswitch._planes import plane_bytes
from bitswitch.checkpoint.config import CheckpointConfig
from bitswitch.errors import CheckpointError
from bitswitch.layers.table import LayerEntry
from bitswitch.rounding import int_range, uint_range

# A scale times the largest code times 2^Δ must stay finite in float32.
MAX_SCALE = 2.0**100


def key(layer: str, what: str) -> str:
    """Return the name of a tensor of a layer; the network itself may be the layer, and then has no name."""
    return f"{layer}.{what}" if layer else what


def weight_scale_keys(config: CheckpointConfig, entry: LayerEntry) -> dict[int, str]:
    """Return the names of the weight scales of a layer by width; in the shared mode one, that of the stored width."""
    if entry.alias_of is not None:
        return {}
    if config.options.shared:
        return {entry.bits[0]: key(entry.name, "weight_scale")}
    return {bits: key(entry.name, f"weight_scale.{bits}") for bits in entry.bits}


def input_keys(entry: LayerEntry) -> dict[int, tuple[str, str | None]]:
    """Return the names of scale and zero point (None if unsigned) of a layer's input by width."""
    if entry.input == "float":
        return {}
    return {
        bits: (
            key(entry.name, f"input_scale.{bits}"),
            key(entry.name, f"input_zero_point.{bits}") if entry.input == "signed" else None,
        )
        for bits in entry.bits
    }


def codes_key(config: CheckpointConfig, entry: LayerEntry) -> str | None:
    """Return the name of the codes of a layer whose weight is in the base file as integers."""
    if entry.alias_of is not None or not config.options.shared or config.weights[entry.name].planes:
        return None
    return key(entry.name, "weight_codes")


def quantizer_keys(config: CheckpointConfig) -> set[str]:
    """Return the names of all scales, zero points and codes in the base file."""
    names: set[str] = set()
    for entry in config.table.select("quantized"):
        names.update(weight_scale_keys(config, entry).values())
        codes = codes_key(config, entry)
        if codes is not None:
            names.add(codes)
        for scale, zero_point in input_keys(entry).values():
            names.update(name for name in (scale, zero_point) if name is not None)
    return names


def scale_shape(config: CheckpointConfig, entry: LayerEntry) -> tuple[int, ...]:
    """Return the shape of a weight scale: (), (out,) or (out, K / group_size)."""
    shape = config.weights[entry.name].shape
    if entry.granularity == "tensor":
        return ()
    if entry.granularity == "channel":
        return (shape[0],)
    return (shape[0], math.prod(shape[1:]) // (entry.group_size or 1))


def check_base(config: CheckpointConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    """Check the scales and zero points of the base file, and the values of all else that is in it.

    Raises:
        CheckpointError: naming the tensor.
    """
    input_bits = dict(config.options.activation_bits)
    for entry in config.table.select("quantized"):
        for name in weight_scale_keys(config, entry).values():
            _check_scale(tensors, name, scale_shape(config, entry), where)
        codes = codes_key(config, entry)
        if codes is not None:
            _check_codes(tensors, codes, config.weights[entry.name].shape, entry.bits[0], where)
        for bits, (scale, zero_point) in input_keys(entry).items():
            _check_scale(tensors, scale, (), where)
            if zero_point is not None:
                _check_zero_point(tensors, zero_point, uint_range(input_bits.get(bits, bits))[1], where)
    for name, tensor in tensors.items():
        check_values(name, tensor, where)


def check_values(name: str, tensor: Tensor, where: str) -> None:
    """Refuse NaN anywhere, and statistics of a BatchNorm that no data can have.

    Raises:
        CheckpointError: naming the tensor.
    """
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return
    low, high = (value.item() for value in torch.aminmax(tensor))
    if math.isnan(low) or math.isnan(high):
        raise CheckpointError(f"{where}: tensor {name!r}: contains NaN")
    statistic = name.rpartition(".")[2]
    if statistic in ("running_mean", "running_var") and (math.isinf(low) or math.isinf(high)):
        raise CheckpointError(f"{where}: tensor {name!r}: expected finite statistics, found {low} to {high}")
    if statistic in ("running_var", "num_batches_tracked") and low < 0:
        raise CheckpointError(f"{where}: tensor {name!r}: expected values of at least 0, found {low}")


def check_finite(name: str, parameter: Tensor, where: str) -> None:
    """Refuse a parameter with NaN or infinite values; buffers may have infinities, such as masks.

    Raises:
        CheckpointError: naming the parameter.
    """
    # `parameter.isfinite().all()` has temporaries of the parameter's size, which would stay in the heap.
    if parameter.numel() and not all(math.isfinite(extreme.item()) for extreme in parameter.aminmax()):
        raise CheckpointError(f"{where}: tensor {name!r}: has NaN or infinite values")


def check_plane(config: CheckpointConfig, index: int, tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that a plane file has a tensor for each layer that stores the plane, of exactly its size.

    Raises:
        CheckpointError: naming the tensor.
    """
    expected = {name: weight for name, weight in config.weights.items() if weight.planes > index}
    check_names(expected, tensors, where)
    for name, weight in expected.items():
        tensor, size = tensors[name], plane_bytes(weight.num_codes)
        check_form(name, tensor, (size,), torch.uint8, where)
        unused = -weight.num_codes % 8
        if unused and int(tensor[-1]) >> (8 - unused):
            raise CheckpointError(
                f"{where}: tensor {name!r}: expected the {unused} bits after the last code to be zero"
            )


def check_names(expected: Mapping[str, object], found: Mapping[str, object], where: str) -> None:
    """Refuse missing and additional tensors.

    Raises:
        CheckpointError: naming the first few.
    """
    for problem, names in (
        ("lacks tensors that it must have", [name for name in expected if name not in found]),
        ("has tensors that nothing needs", [name for name in found if name not in expected]),
    ):
        if names:
            shown = ", ".join(repr(name[:200]) for name in names[:5])
            raise CheckpointError(f"{where}: {problem}: {shown}{' …' if len(names) > 5 else ''}")


def check_form(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> None:
    """Refuse a tensor of another shape or dtype.

    Raises:
        CheckpointError: naming the tensor, what was expected and what was found.
    """
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise CheckpointError(
            f"{where}: tensor {name!r}: expected {dtype} of shape {tuple(shape)}, "
            f"found {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def _required(tensors: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{where}: lacks tensors that it must have: {name!r}")
    return tensors[name]


def _check_scale(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], where: str) -> None:
    scale = _required(tensors, name, where)
    check_form(name, scale, shape, torch.float32, where)
    low, high = (value.item() for value in torch.aminmax(scale))
    # A comparison with NaN is false, so this refuses it too.
    if not 0 < low <= high <= MAX_SCALE:
        raise CheckpointError(
            f"{where}: tensor {name!r}: expected scales above 0 and up to {MAX_SCALE:g}, found {low} to {high}"
        )


def _check_codes(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], bits: int, where: str) -> None:
    codes = _required(tensors, name, where)
    check_form(name, codes, shape, torch.int8, where)
    low, high = (int(value) for value in torch.aminmax(codes))
    n, p = int_range(bits)
    if not n <= low <= high <= p:
        raise CheckpointError(f"{where}: tensor {name!r}: expected {bits}-bit codes {n} to {p}, found {low} to {high}")


def _check_zero_point(tensors: Mapping[str, Tensor], name: str, top: int, where: str) -> None:
    zero_point = _required(tensors, name, where)
    check_form(name, zero_point, (), torch.int32, where)
    if not 0 <= int(zero_point) <= top:
        raise CheckpointError(f"{where}: tensor {name!r}: expected 0 to {top}, found {int(zero_point)}")

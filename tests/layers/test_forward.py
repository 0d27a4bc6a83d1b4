"""Linear layers and convolutions at every width equal the plain operation on operands quantized by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.layers.reference import BITS, codes_of, input_of, out_first, scales_of, seeded, switchable, weight_of

Operation = Callable[[Any, Tensor, Tensor], Tensor]


def linear(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight, layer.bias)


def conv(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.dim()]
    return function(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def circular(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, layer.bias)


def transposed(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    function = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}[weight.dim()]
    return function(
        x, weight, layer.bias, layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Operation]] = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6), linear),
    "linear without bias on 4 dimensions": (lambda: nn.Linear(6, 4, bias=False), (2, 1, 3, 6), linear),
    "linear on a vector": (lambda: nn.Linear(6, 4), (6,), linear),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, stride=2, dilation=2), (2, 6, 11), conv),
    "conv2d": (lambda: nn.Conv2d(6, 4, (3, 2), padding=(2, 1)), (2, 6, 5, 4), conv),
    "conv2d unbatched": (lambda: nn.Conv2d(6, 4, 1), (6, 5, 4), conv),
    "conv2d grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False), (2, 6, 5, 5), conv),
    "conv2d depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6, padding="same"), (2, 6, 5, 5), conv),
    "conv2d circular": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (2, 6, 5, 5), circular),
    "conv3d": (lambda: nn.Conv3d(6, 4, 2, stride=(1, 2, 1)), (1, 6, 3, 4, 3), conv),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 4, 3, stride=2, output_padding=1), (2, 6, 4), transposed),
    "transposed 2d": (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2, padding=1), (2, 6, 4, 5), transposed),
    "transposed 2d depthwise": (lambda: nn.ConvTranspose2d(6, 6, 2, groups=6, stride=2), (2, 6, 3, 3), transposed),
    "transposed 3d": (lambda: nn.ConvTranspose3d(6, 4, 2, groups=2, dilation=2), (1, 6, 2, 3, 2), transposed),
}


def made(name: str, granularity: str, signed: bool | None) -> tuple[Any, Tensor]:
    build, shape, _ = CASES[name]
    torch.manual_seed(0)
    layer = build()
    fan_in = out_first(layer, layer.weight.detach())[0].numel()  # pyright: ignore[reportArgumentType, reportCallIssue]
    group_size = next(g for g in (3, 2, 1) if fan_in % g == 0) if granularity == "group" else None
    x = 1.5 * seeded(*shape)
    return switchable(layer, granularity, group_size, signed), x if signed in (True, None) else x.abs()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("granularity", "signed"), [("tensor", True), ("tensor", False), ("channel", True), ("group", None)]
)
def test_forward_at_every_width(name: str, granularity: str, signed: bool | None) -> None:
    layer, x = made(name, granularity, signed)
    seen = []
    for bits in BITS:
        layer.bits = bits
        weight, quantized = weight_of(layer, bits), input_of(layer, x, bits)
        torch.testing.assert_close(layer.quantized_weight(), weight, rtol=0, atol=0)
        torch.testing.assert_close(layer.quantized_input(x), quantized, rtol=0, atol=0)
        expected = CASES[name][2](layer, quantized, weight)
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
        rows = out_first(layer, layer.weight.detach())
        codes = layer.weight_codes()
        assert codes.dtype == torch.int8
        assert codes.is_contiguous()
        assert torch.equal(codes.float(), codes_of(rows, scales_of(layer.weight_quantizer, rows), bits))
        seen.append(layer(x))
    assert not any(torch.equal(first, second) for first, second in pairwise(seen))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("granularity", ["tensor", "group"])
def test_frozen_is_bit_identical(name: str, granularity: str) -> None:
    layer, x = made(name, granularity, True)
    expected = {}
    for bits in BITS:
        layer.bits = bits
        expected[bits] = layer(x)
    layer.set_codes(layer.weight_codes(BITS[0]), layer.weight_quantizer.scale.value().detach(), BITS[0])
    for bits in BITS:
        layer.bits = bits
        assert torch.equal(layer(x), expected[bits])
    layer.unfreeze()
    for bits in BITS:
        layer.bits = bits
        assert torch.equal(layer(x), expected[bits])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bits", [8, 2])
def test_gradients_are_straight_through(name: str, bits: int) -> None:
    """Compare with the plain operation: its gradients, where nothing is clipped, and 0 elsewhere."""
    layer, x = made(name, "channel", True)
    layer.bits = bits
    given_x = x.clone().requires_grad_()
    output = layer(given_x)
    direction = seeded(*output.shape, seed=7)
    output.backward(direction)
    weight = weight_of(layer, bits).requires_grad_()
    quantized = input_of(layer, x, bits).requires_grad_()
    CASES[name][2](layer, quantized, weight).backward(direction)
    scale = layer.input_quantizer.scale_for(bits).value().detach()
    position = x / scale + 2 ** (bits - 1) - 1
    inside = (position > 0) & (position < 2**bits - 1)
    assert quantized.grad is not None
    torch.testing.assert_close(given_x.grad, torch.where(inside, quantized.grad, 0.0), rtol=1e-5, atol=1e-5)
    rows = out_first(layer, layer.weight.detach())
    position = rows / (scales_of(layer.weight_quantizer, rows) * 2.0 ** (BITS[0] - bits))
    inside = (position > -(2 ** (bits - 1))) & (position < 2 ** (bits - 1) - 1)
    assert weight.grad is not None
    expected = torch.where(inside, out_first(layer, weight.grad), 0.0)
    torch.testing.assert_close(out_first(layer, layer.weight.grad), expected, rtol=1e-5, atol=1e-5)


def test_transposed_codes_by_loops() -> None:
    """Row g · C_out/groups + o of the codes makes output channel g · C_out/groups + o and nothing else."""
    layer = switchable(nn.ConvTranspose2d(6, 4, (2, 3), groups=2, bias=False), "channel", signed=None)
    layer.bits = 4
    x = seeded(1, 6, 3, 3)
    codes, scale = layer.weight_codes(), layer.weight_quantizer.scale.value().detach() * 2.0**4
    expected = torch.zeros(1, 4, 4, 5)
    for channel in range(4):
        group = channel // 2
        for index in range(3):
            for row in range(3):
                for column in range(3):
                    kernel = codes[channel, index].float() * scale[channel]
                    patch = expected[0, channel, row : row + 2, column : column + 3]
                    patch += x[0, 3 * group + index, row, column] * kernel
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_transposed_output_size() -> None:
    x = seeded(2, 6, 4, 5)
    strided = switchable(nn.ConvTranspose2d(6, 4, 3, groups=2, padding=1, stride=2))
    assert strided(x, output_size=(8, 10)).shape == (2, 4, 8, 10)
    assert strided(x).shape == (2, 4, 7, 9)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_convolutions_of_any_shape(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 3))
    inputs, outputs = groups * data.draw(st.integers(1, 3)), groups * data.draw(st.integers(1, 3))
    kind = data.draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    options = {"stride": data.draw(st.integers(1, 2)), "dilation": data.draw(st.integers(1, 2)), "groups": groups}
    layer = switchable(kind(inputs, outputs, kernel, **options), data.draw(st.sampled_from(["tensor", "channel"])))
    layer.bits = bits = data.draw(st.sampled_from(BITS))
    x = seeded(data.draw(st.integers(1, 2)), inputs, data.draw(st.integers(5, 7)), 6)
    operation = conv if kind is nn.Conv2d else transposed
    expected = operation(layer, input_of(layer, x, bits), weight_of(layer, bits))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)

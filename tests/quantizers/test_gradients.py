"""Forward and backward of both quantizers against elementwise formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitswitch.quantizers import ActivationQuantizer, Granularity, WeightQuantizer
from bitswitch.rounding import int_range

WIDTHS = (8, 6, 4, 3, 2)


def spread(scale: Tensor, granularity: Granularity, shape: torch.Size) -> Tensor:
    """Give every weight the scale of its tensor, channel or group."""
    if granularity == "tensor":
        return scale.expand(shape)
    if granularity == "channel":
        return scale[:, None].expand(shape[0], math.prod(shape[1:])).reshape(shape)
    return scale.repeat_interleave(math.prod(shape[1:]) // scale.shape[1], dim=1).reshape(shape)


def gather(elements: Tensor, granularity: Granularity, scale_shape: tuple[int, ...]) -> Tensor:
    """Sum over the weights that share a scale."""
    if granularity == "tensor":
        return elements.sum()
    rows = elements.flatten(1)
    return rows.sum(1) if granularity == "channel" else rows.unflatten(1, (scale_shape[1], -1)).sum(2)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("parametrization", ["log", "raw"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("midrise", [(), (6, 3, 2)])
def test_weights(
    bits: int, granularity: Granularity, parametrization: str, shared: bool, midrise: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = (torch.randn(4, 6, 3, 3, generator=generator) * (2 if midrise else 1)).requires_grad_()
    quantizer = WeightQuantizer(
        weight.shape,
        WIDTHS,
        granularity,
        18,
        shared=shared,
        parametrization=parametrization,  # pyright: ignore[reportArgumentType]
        midrise=midrise,
    )
    stored = 8 if shared else bits
    steps = torch.rand(quantizer.scale_shape, generator=generator) * 0.02 + 0.01
    quantizer.scale_for(bits).set_(steps * 2.0 ** (8 - stored))
    result = quantizer(weight, bits)
    grad = torch.randn(weight.shape, generator=generator)
    result.backward(grad)

    s = spread(quantizer.scale_for(bits).value().detach(), granularity, weight.shape)
    factor = 2.0 ** (stored - bits)
    v = weight.detach() / (s * factor)
    n, p = int_range(bits)
    n_stored, p_stored = int_range(stored)
    first = (weight.detach() / s).round().clamp(n_stored, p_stored)
    if bits in midrise:
        codes = torch.floor(weight.detach() / s).clamp(n, p) if bits == stored else torch.floor(first / factor)
        levels, p = codes + 0.5, p + 1
    else:
        codes = levels = first if bits == stored else torch.floor(first / factor + 0.5).clamp(n, p)
    assert torch.equal(quantizer.codes(weight, bits).float(), codes)
    assert torch.equal(result, levels * (s * factor))
    assert torch.equal(quantizer.dequantize(codes.to(torch.int8), bits), result)
    inside = (v > n) & (v < p)
    assert 0 < int(inside.sum()) < inside.numel() or bits > 4
    assert torch.equal(weight.grad, grad * inside)
    # Eq. (13) at a lower width: 2^Δ (code − v) inside, 2^Δ n or 2^Δ p outside.
    local = torch.where(inside, levels - v, levels)
    expected = gather(grad.double() * factor * local.double(), granularity, quantizer.scale_shape)
    got = quantizer.scale_for(bits).raw_grad()
    assert got is not None
    torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations(bits: int, signed: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(3, 5, 4, 4, generator=generator).to(dtype).requires_grad_()
    top = (1 << bits) - 1
    quantizer = ActivationQuantizer(WIDTHS, signed=signed)
    for b in WIDTHS:
        quantizer.set_(b, torch.tensor(3.0 / ((1 << b) - 1)), round(((1 << b) - 1) * 0.4))
    result = quantizer(x, bits)
    assert result.dtype == dtype
    grad = torch.randn(x.shape, generator=generator).to(dtype)
    result.backward(grad)

    s = quantizer.scale_for(bits).value().detach()
    zero_point = round(top * 0.4) if signed else 0
    v = x.detach().float() / s
    codes = (v.round() + zero_point).clamp(0, top)
    assert torch.equal(quantizer.codes(x, bits), codes)
    assert torch.equal(result, ((codes - zero_point) * s).to(dtype))
    inside = (v + zero_point > 0) & (v + zero_point < top)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(x.grad, grad * inside)
    g = grad.double()
    scale_grad = (g * torch.where(inside, codes - zero_point - v, codes - zero_point).double()).sum()
    got = quantizer.scale_for(bits).raw_grad()
    assert got is not None
    torch.testing.assert_close(got.double(), scale_grad, rtol=1e-3, atol=1e-3)
    if signed:
        module = quantizer.zero_point_for(bits)
        assert module is not None
        # One code more of zero point moves a clipped value by −s, and no other; `shift` is a fraction of the range.
        expected = -(g * ~inside).sum() * s.double() * top
        torch.testing.assert_close(module.shift.grad.double(), expected, rtol=1e-3, atol=1e-3)


def test_zero_is_always_a_code() -> None:
    quantizer = ActivationQuantizer((8, 2), signed=True)
    quantizer.set_(8, torch.tensor(0.013), 77)
    quantizer.set_(2, torch.tensor(0.9), 3)
    for bits in (8, 2):
        assert quantizer(torch.zeros(1), bits).item() == 0.0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_does_not_change_gradients(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.rand(2, 6, 5, 5, generator=generator)
    grad = torch.randn(2, 6, 5, 5, generator=generator)
    quantizer = ActivationQuantizer((4,), signed=False)
    quantizer.set_(4, torch.tensor(0.05))
    x = plain.to(memory_format=layout).requires_grad_()
    y = quantizer(x, 4)
    assert y.is_contiguous(memory_format=layout)
    y.backward(grad.to(memory_format=layout))
    expected = ((grad * (y.detach() - plain * (plain < 0.75))).sum() / 0.05).double()
    torch.testing.assert_close(quantizer.scale_for(4).raw_grad().double(), expected, rtol=1e-3, atol=1e-3)


def test_lsq_gradient_scale() -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    grads = []
    for gradient_scale in (False, True):
        quantizer = WeightQuantizer(weight.shape, (8, 2), "channel", gradient_scale=gradient_scale)
        quantizer.scale.set_(torch.full((4,), 0.01))
        quantizer(weight, 2).sum().backward()
        grads.append(quantizer.scale.raw_grad())
    torch.testing.assert_close(grads[1], grads[0] / math.sqrt(9 * 1))

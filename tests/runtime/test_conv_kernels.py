"""The compiled convolutions, pools and elementwise kernels equal their references bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitswitch import kernels
from bitswitch.errors import ArgumentError
from bitswitch.runtime import conv_kernels as ops
from bitswitch.runtime import conv_reference as reference
from bitswitch.runtime.conv_reference import Epilogue, Quantizer, Window, channel_stride

pytestmark = pytest.mark.skipif(kernels.native is None, reason="no compiled kernels")


quantizers = st.builds(
    Quantizer, st.sampled_from([0.013, 0.5, 3.0]), st.sampled_from([0, 2, 3]), st.sampled_from([3, 15, 255])
)
epilogues = st.builds(
    Epilogue,
    st.sampled_from([(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0)]),
    st.lists(quantizers, max_size=4).map(tuple),
    st.booleans(),
)


@st.composite
def windows(draw, most_kernel=4):
    sides = st.integers(1, most_kernel)
    kernel, padding = (draw(sides), draw(sides)), tuple(draw(st.integers(0, 3)) for _ in range(4))
    stride, dilation = (
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
    )
    # Padding of less than the window, as pooling asks for; images of at least one window.
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(min(p, reach[i // 2]) for i, p in enumerate(padding))
    height, width = (draw(st.integers(1, 9)) + r for r in reach)
    return Window(draw(st.integers(0, 3)), height, width, kernel, stride, padding, dilation)


def _run(op, x, residual, epilogue, shape):
    """Run an op on buffers whose ends are guarded."""
    pixels, channels = math.prod(shape[:-1]), shape[-1]
    out = torch.full((pixels * channels + 16,), 7.5) if epilogue.write_float else None
    stride = channel_stride(channels)
    copies = [torch.full((pixels * stride + 64,), 199, dtype=torch.uint8) for _ in epilogue.quantized]
    op.run(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if out is None else out.data_ptr(),
        *[copy.data_ptr() for copy in copies],
    )
    if out is not None:
        assert (out[pixels * channels :] == 7.5).all()
        out = out[: pixels * channels].view(shape)
    assert all((copy[pixels * stride :] == 199).all() for copy in copies)
    return out, [copy[: pixels * stride].view(*shape[:-1], stride)[..., :channels] for copy in copies]


def _compare(got, wanted, channels):
    assert (got[0] is None) == (wanted[0] is None)
    assert got[0] is None or torch.equal(got[0], wanted[0])
    assert len(got[1]) == len(wanted[1])
    for ours, theirs in zip(got[1], wanted[1], strict=True):
        assert torch.equal(ours, theirs[..., :channels])


def _check_conv(window, groups, group_in, group_out, zero_point, epilogue, with_bias, with_residual, seed):
    torch.manual_seed(seed)
    channels, out_channels = groups * group_in, groups * group_out
    x = torch.randint(0, 256, (window.batch, window.height, window.width, channel_stride(channels)), dtype=torch.uint8)
    codes = torch.randint(-128, 128, (out_channels, group_in, *window.kernel), dtype=torch.int8)
    multiplier = torch.rand(out_channels) * 1e-3
    bias = torch.randn(out_channels) if with_bias else None
    shape = (window.batch, *window.out_size, out_channels)
    residual = torch.randn(shape) if with_residual else None
    packed = ops.pack_conv(codes, groups)
    affine = {"multiplier": multiplier, "bias": bias, "zero_point": zero_point}
    op = ops.conv_op(packed, window, epilogue, residual=with_residual, **affine)
    wanted = reference.conv2d(x, codes, window, epilogue, groups=groups, residual=residual, **affine)
    _compare(_run(op, x, residual, epilogue, shape), wanted, out_channels)


@settings(max_examples=150)
@given(
    windows(),
    st.sampled_from([1, 1, 1, 2, 3]),
    st.sampled_from([1, 3, 4, 7, 16, 20, 65]),
    st.sampled_from([1, 5, 16, 17, 48, 70]),
    st.sampled_from([0, 3, 128, 255]),
    epilogues,
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def _convolutions(window, groups, group_in, group_out, zero_point, epilogue, with_bias, with_residual, seed):
    _check_conv(window, groups, group_in, group_out, zero_point, epilogue, with_bias, with_residual, seed)


def test_convolutions_equal_the_reference(isa):
    _convolutions()


@pytest.mark.parametrize("kernel", [(1, 19), (2, 17), (19, 1)])
@pytest.mark.parametrize("group_out", [16, 40])
def test_long_windows_equal_the_reference(isa, kernel, group_out):
    window = Window(2, 21, 23, kernel, (1, 2), (0, kernel[0] // 2, 3, kernel[1] // 2))
    epilogue = Epilogue((0.0, math.inf), (Quantizer(0.5, 0, 255),))
    _check_conv(window, 1, 20, group_out, 3, epilogue, True, False, 0)


@settings(max_examples=100)
@given(
    windows(7),
    st.sampled_from([1, 3, 16, 32, 60, 64, 96, 145]),
    st.sampled_from([0, 128, 255]),
    epilogues,
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def _depthwise(window, channels, zero_point, epilogue, with_bias, with_residual, seed):
    _check_conv(window, channels, 1, 1, zero_point, epilogue, with_bias, with_residual, seed)


def test_depthwise_convolutions_equal_the_reference(isa):
    _depthwise()


@pytest.mark.parametrize("multiplier", [1.0, 1e9, 1e30])
@pytest.mark.parametrize("clamp", [(-math.inf, math.inf), (0.0, math.inf), (-2.0, 6.0)])
def test_products_beyond_integers_saturate(isa, multiplier, clamp):
    torch.manual_seed(0)
    window, epilogue = Window(1, 3, 3, (1, 1)), Epilogue(clamp, (Quantizer(0.013, 2, 15), Quantizer(3.0, 128, 255)))
    x, codes = torch.randint(0, 256, (1, 3, 3, 8), dtype=torch.uint8), torch.randint(-128, 128, (70, 8, 1, 1))
    codes, m = codes.to(torch.int8), torch.full((70,), multiplier)
    op = ops.conv_op(ops.pack_conv(codes), window, epilogue, multiplier=m)
    wanted = reference.conv2d(x, codes, window, epilogue, multiplier=m)
    _compare(_run(op, x, None, epilogue, (1, 3, 3, 70)), wanted, 70)


def test_extreme_sums_are_exact(isa):
    window = Window(1, 1, 1, (1, 1))
    x = torch.full((1, 1, 1, 40000), 255, dtype=torch.uint8)
    codes = torch.full((1, 40000, 1, 1), -128, dtype=torch.int8)
    for zero_point in (0, 255):
        affine = {"multiplier": torch.ones(1), "zero_point": zero_point}
        op = ops.conv_op(ops.pack_conv(codes), window, Epilogue(), **affine)
        wanted = reference.conv2d(x, codes, window, Epilogue(), **affine)
        _compare(_run(op, x, None, Epilogue(), (1, 1, 1, 1)), wanted, 1)


@settings(max_examples=60)
@given(windows(), st.sampled_from([1, 5, 64, 67]), epilogues, st.integers(0, 99))
def _pools(window, channels, epilogue, seed):
    torch.manual_seed(seed)
    x = torch.randn(window.batch, window.height, window.width, channels) * 3
    shape = (window.batch, *window.out_size, channels)
    if window.batch:
        got = _run(ops.max_pool_op(window, channels, epilogue), x, None, epilogue, shape)
        _compare(got, reference.max_pool2d(x, window, epilogue), channels)
    rows = x.flatten(1, 2)
    op = ops.mean_pool_op(rows.shape[0], rows.shape[1], channels, epilogue)
    got = _run(op, rows, None, epilogue, (rows.shape[0], channels))
    _compare(got, reference.mean_pool(rows, epilogue), channels)


def test_pools_equal_the_reference(isa):
    _pools()


@settings(max_examples=60)
@given(st.integers(0, 300), st.sampled_from([1, 3, 64, 70]), epilogues, quantizers, st.booleans(), st.integers(0, 99))
def _elementwise(pixels, channels, epilogue, quantizer, flag, seed):
    torch.manual_seed(seed)
    a, b = torch.randn(pixels, channels) * 4, torch.randn(pixels, channels) if flag else None
    got = _run(ops.add_op(pixels, channels, epilogue), a, b, epilogue, (pixels, channels))
    _compare(got, reference.add(a, b, epilogue), channels)
    x = torch.randn((2, pixels, channels) if flag else (2, channels, pixels)) * 1e3
    out = torch.empty(2, pixels, channel_stride(channels), dtype=torch.uint8)
    ops.quantize_op(2, channels, pixels, quantizer, flag).run(x.data_ptr(), out.data_ptr())
    assert torch.equal(out[..., :channels], reference.quantize(x, quantizer, flag)[..., :channels])


def test_elementwise_kernels_equal_the_reference(isa):
    _elementwise()


def test_wrong_arguments_are_refused():
    codes = torch.zeros(4, 2, 1, 1, dtype=torch.int8)
    with pytest.raises(ArgumentError, match="int8"):
        ops.pack_conv(codes.float())
    with pytest.raises(ArgumentError, match="3 groups"):
        ops.pack_conv(codes, 3)
    with pytest.raises(ArgumentError, match="32 bits"):
        ops.pack_conv(torch.zeros(1, 70000, 1, 1, dtype=torch.int8))
    packed, window = ops.pack_conv(codes), Window(1, 2, 2, (1, 1))
    with pytest.raises(ArgumentError, match="multiplier"):
        ops.conv_op(packed, window, Epilogue(), multiplier=torch.ones(3))
    with pytest.raises(ArgumentError, match="window"):
        ops.conv_op(packed, Window(1, 2, 2, (2, 2)), Epilogue(), multiplier=torch.ones(4))
    with pytest.raises(ArgumentError, match="at most 4"):
        ops.conv_op(packed, window, Epilogue(quantized=(Quantizer(1.0, 0, 3),) * 5), multiplier=torch.ones(4))

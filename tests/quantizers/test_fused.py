"""The compiled quantizers equal the plain formulas, on every instruction set, forward and backward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import bitswitch as bs
from bitswitch import kernels
from bitswitch.quantizers import GRANULARITIES, ActivationQuantizer, Granularity, WeightQuantizer, _fused
from tests.instruction_sets import isa as isa

WIDTHS = (8, 6, 4, 3, 2)
TYPES = (torch.float32, torch.bfloat16)


pytestmark = [
    pytest.mark.skipif(kernels.native is None, reason="there are no compiled kernels to compare"),
    pytest.mark.usefixtures("isa"),
]


Run = tuple[Tensor, dict[str, Tensor]]


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let quantizers run on the plain formulas from now on."""
    monkeypatch.setattr(kernels, "native", None)


def run_weight(quantizer: WeightQuantizer, weight: Tensor, bits: int, dtype: torch.dtype, grad: Tensor) -> Run:
    weight = weight.detach().requires_grad_()
    quantizer.zero_grad()
    result = quantizer(weight, bits, dtype=dtype)
    assert result.shape == weight.shape
    assert result.dtype == dtype
    result.backward(grad)
    parameter = quantizer.scale_for(bits).parameter
    assert weight.grad is not None
    assert weight.grad.dtype == weight.dtype
    assert parameter.grad is not None
    return result.detach(), {"weight": weight.grad, "scale": parameter.grad}


def run_input(quantizer: ActivationQuantizer, x: Tensor, bits: int, grad: Tensor) -> Run:
    x = x.detach().requires_grad_()
    quantizer.zero_grad()
    result = quantizer(x, bits)
    assert result.shape == x.shape
    assert result.dtype == x.dtype
    result.backward(grad)
    parameter, zero_point = quantizer.scale_for(bits).parameter, quantizer.zero_point_for(bits)
    assert x.grad is not None
    assert x.grad.dtype == x.dtype
    assert parameter.grad is not None
    gradients = {"x": x.grad, "scale": parameter.grad}
    if zero_point is not None:
        assert zero_point.shift.grad is not None
        gradients["zero point"] = zero_point.shift.grad
    return result.detach(), gradients


def check(fused: Run, reference: Run, size: float) -> None:
    """Compare: elements bit for bit, sums up to their rounding in float32, with `size` the sum of absolute values."""
    assert torch.equal(fused[0], reference[0])
    for name, expected in reference[1].items():
        if name in ("weight", "x"):
            assert torch.equal(fused[1][name], expected)
        else:
            torch.testing.assert_close(fused[1][name], expected, rtol=1e-4, atol=1e-6 * size + 1e-7)


def weight_quantizer(weight: Tensor, granularity: Granularity, **options: object) -> WeightQuantizer:
    generator = torch.Generator().manual_seed(1)
    quantizer = WeightQuantizer(weight.shape, WIDTHS, granularity, 9, **options)  # pyright: ignore[reportArgumentType]
    for bits in WIDTHS:
        steps = torch.rand(quantizer.scale_shape, generator=generator) * 0.02 + 0.005
        quantizer.scale_for(bits).set_(steps * 2.0 ** (8 - quantizer.code_bits(bits)))
        # A logarithm that is not zero, so that the exponential counts.
        if quantizer.scale_for(bits).parametrization == "log":
            quantizer.scale_for(bits).parameter.data.fill_(0.07)
    return quantizer


def input_quantizer(signed: bool, **options: object) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(WIDTHS, signed=signed, **options)  # pyright: ignore[reportArgumentType]
    for bits in WIDTHS:
        top = (1 << bits) - 1
        quantizer.set_(bits, torch.tensor(3.0 / top), round(top * 0.4))
        quantizer.scale_for(bits).parameter.data.mul_(1.1).add_(0.01)
    return quantizer


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("out", TYPES)
def test_weights(
    granularity: Granularity, bits: int, dtype: torch.dtype, out: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(5, 7, 3, 3, generator=generator).to(dtype)
    grad = torch.randn(weight.shape, generator=generator).to(out)
    quantizer = weight_quantizer(weight, granularity)
    fused = run_weight(quantizer, weight, bits, out, grad)
    plain(monkeypatch)
    check(fused, run_weight(quantizer, weight, bits, out, grad), size=128 * weight.numel())


@pytest.mark.parametrize(
    "options",
    [
        {"shared": False},
        {"parametrization": "raw"},
        {"gradient_scale": True},
        {"midrise": (6, 4, 3, 2)},
        {"shared": False, "midrise": (6, 4, 3, 2)},
    ],
    ids=lambda o: "-".join(o),
)
def test_weights_with_other_settings(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    weight, grad = (torch.randn(4, 18, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    quantizer = weight_quantizer(weight, "channel", **options)
    fused = [run_weight(quantizer, weight, bits, torch.float32, grad) for bits in WIDTHS]
    plain(monkeypatch)
    for bits, run in zip(WIDTHS, fused, strict=True):
        check(run, run_weight(quantizer, weight, bits, torch.float32, grad), size=64.0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [1, 16, 333, 40_000])
def test_inputs(signed: bool, bits: int, dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(count)
    x, grad = (torch.randn(count, generator=generator).mul(2).to(dtype) for _ in range(2))
    quantizer = input_quantizer(signed)
    fused = run_input(quantizer, x, bits, grad)
    plain(monkeypatch)
    check(fused, run_input(quantizer, x, bits, grad), size=4.0 * count)


def test_input_gradient_scale_and_raw_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = (torch.randn(3, 50, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    quantizer = input_quantizer(True, gradient_scale=True, parametrization="raw")
    fused = run_input(quantizer, x, 4, grad)
    plain(monkeypatch)
    check(fused, run_input(quantizer, x, 4, grad), size=1.0)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Return tensors equal to `x`, of shape (N, C, H, W), in other orders of memory."""
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "gaps": torch.stack([x, x], -1)[..., 0],
        "reversed": x.flip(2).contiguous().flip(2),
        "expanded": x[:, :1].expand_as(x),
    }


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "gaps", "reversed", "expanded"])
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "gaps", "expanded"])
def test_layouts(layout: str, grad_layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(4, 6, 3, 5, generator=generator) for _ in range(2))
    x, grad = layouts(x)[layout], layouts(grad).get(grad_layout, grad)
    inputs, weights = input_quantizer(True), [weight_quantizer(x, "tensor"), weight_quantizer(x, "channel")]
    fused = [run_input(inputs, x, 4, grad), *(run_weight(w, x, 4, torch.float32, grad) for w in weights)]
    plain(monkeypatch)
    check(fused[0], run_input(inputs, x, 4, grad), size=500.0)
    for run, quantizer in zip(fused[1:], weights, strict=True):
        check(run, run_weight(quantizer, x, 4, torch.float32, grad), size=8000.0)
    if layout == "channels_last":
        assert all(run[0].is_contiguous(memory_format=torch.channels_last) for run in fused)


def test_empty_tensors() -> None:
    for shape in ((0,), (0, 3, 4, 4), (2, 0)):
        x = torch.zeros(shape)
        result, gradients = run_input(input_quantizer(True), x, 4, x)
        assert result.shape == x.shape
        assert gradients["scale"] == 0
        assert gradients["zero point"] == 0
        for granularity in ("tensor", "channel"):
            result, gradients = run_weight(weight_quantizer(x, granularity), x, 4, torch.float32, x)
            assert result.shape == x.shape
            assert not gradients["scale"].any()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", [8, 3])
def test_infinite_numbers_saturate(
    signed: bool, dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.linspace(-1, 1, 41).to(dtype)
    x[3], x[20], x[40] = -math.inf, math.inf, torch.finfo(dtype).max
    grad = torch.ones_like(x)
    inputs, weights = input_quantizer(signed), weight_quantizer(x, "tensor")
    fused = run_input(inputs, x, bits, grad), run_weight(weights, x, bits, dtype, grad)
    assert all(value.isfinite().all() for run in fused for value in (run[0], *run[1].values()))
    plain(monkeypatch)
    check(fused[0], run_input(inputs, x, bits, grad), size=100.0)
    check(fused[1], run_weight(weights, x, bits, dtype, grad), size=3000.0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", [8, 3])
def test_nan_stays_nan(dtype: torch.dtype, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a step is refused: the output is NaN there and the scale's gradient is NaN."""
    x = torch.linspace(-1, 1, 41).to(dtype)
    x[[1, 17, 40]] = math.nan
    grad = torch.ones_like(x)
    inputs, weights = input_quantizer(True), weight_quantizer(x, "tensor")
    runs = [run_input(inputs, x, bits, grad), run_weight(weights, x, bits, dtype, grad)]
    plain(monkeypatch)
    runs += [run_input(inputs, x, bits, grad), run_weight(weights, x, bits, dtype, grad)]
    for run, expected in zip(runs[:2], runs[2:], strict=True):
        torch.testing.assert_close(run[0], expected[0], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(run[0].isnan(), x.isnan())
        assert run[1]["scale"].isnan()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(200_001, generator=generator) for _ in range(2))
    weight, weight_grad = (t[:179_982].view(9, 19_998) for t in (x, grad))
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            run = [run_input(input_quantizer(True), x, 3, grad)]
            for granularity in GRANULARITIES:
                quantizer = weight_quantizer(weight, granularity)
                run += [run_weight(quantizer, weight, 3, torch.float32, weight_grad)]
            runs.append(run)
    finally:
        torch.set_num_threads(threads)
    for other in runs[1:]:
        for (result, gradients), (expected, expected_gradients) in zip(other, runs[0], strict=True):
            assert torch.equal(result, expected)
            assert all(torch.equal(gradients[name], value) for name, value in expected_gradients.items())


def test_scale_gradients_are_those_of_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(1_000_000, generator=generator) for _ in range(2))
    quantizer = input_quantizer(False)
    _, gradients = run_input(quantizer, x, 4, grad)
    s = quantizer.scale_for(4).value().detach()
    v = (x / s).double()
    inside = (v > 0) & (v < 15)
    codes = v.round().clamp(0, 15)
    expected = (grad.double() * torch.where(inside, codes - v, codes)).sum() * s.double()
    torch.testing.assert_close(gradients["scale"].double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_embedding_rows(granularity: Granularity, monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(6, 18, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 5, 5], [2, 0, 1]])
    quantizer = weight_quantizer(table, granularity)

    def run() -> Run:
        rows = table[tokens].requires_grad_()
        quantizer.zero_grad()
        result = quantizer(rows, 3, rows=tokens)
        result.backward(torch.ones_like(result))
        gradient = quantizer.scale.parameter.grad
        assert rows.grad is not None
        assert gradient is not None
        return result.detach(), {"weight": rows.grad, "scale": gradient}

    fused = run()
    plain(monkeypatch)
    check(fused, run(), size=3000.0)


@pytest.mark.parametrize("dtype", TYPES)
def test_kernels_run_where_they_can(dtype: torch.dtype) -> None:
    x, scale = torch.zeros(3, dtype=dtype), torch.ones(())
    assert _fused.usable(x, scale)
    assert _fused.usable(torch.nn.Parameter(x), torch.nn.Parameter(scale), scale)
    assert not _fused.usable(x.half(), scale)
    assert not _fused.usable(x.double(), scale)
    assert not _fused.usable(x.to("meta"), scale)
    assert not _fused.usable(x, scale.to("meta"))
    assert not _fused.usable(x, scale, scale.to("meta"))
    for kind in (torch.float64, torch.bfloat16):
        assert not _fused.usable(x, scale.to(kind))
        assert not _fused.usable(x, scale, None, scale.to(kind))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_quantizers_on_another_device_raise_what_pytorch_does(granularity: Granularity) -> None:
    x = torch.randn(4, 18)
    inputs, weights = input_quantizer(True).to("meta"), weight_quantizer(x, granularity).to("meta")
    with pytest.raises(RuntimeError, match="device meta"):
        inputs(x, 4)
    with pytest.raises(RuntimeError, match="device meta"):
        weights(x, 4)
    with pytest.raises(RuntimeError, match="device meta"):
        weights(x[:2], 4, rows=torch.tensor([0, 1]))


def test_other_devices_and_types_take_the_plain_formulas() -> None:
    inputs, weight = input_quantizer(True), torch.randn(4, 18)
    weights = weight_quantizer(weight, "group")
    for dtype in (torch.float16, torch.float64):
        assert inputs(weight.to(dtype), 4).dtype == dtype
        assert weights(weight, 4, dtype=dtype).dtype == dtype
        assert torch.equal(weights(weight, 4, dtype=dtype), weights(weight, 4).to(dtype))
    inputs, weights = inputs.to("meta"), weights.to("meta")
    x = torch.empty(4, 18, device="meta", requires_grad=True)
    (inputs(x, 4) + weights(x, 4)).sum().backward()
    assert x.grad is not None
    assert x.grad.device.type == "meta"
    assert x.grad.shape == x.shape


def test_nothing_is_computed_for_inference_but_the_result() -> None:
    x = torch.randn(40)
    with torch.inference_mode():
        result = input_quantizer(True)(x, 4)
    assert result.is_inference()
    assert torch.equal(result, input_quantizer(True)(x, 4))


def test_autocast_rounds_float32_results_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight comes in the type of the input, so that autocast has nothing to convert."""
    layer = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(4, 6, 3), torch.nn.ReLU(), torch.nn.Conv2d(6, 2, 3))
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    model = bs.prepare(layer, (8, 4), example_inputs=x, first_last=8)
    bs.calibrate(model, [x])
    runs = []
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = model(x)
        result.float().sum().backward()
        runs.append((result, [p.grad for p in model.parameters()]))
        plain(monkeypatch)
    assert runs[0][0].dtype == torch.bfloat16
    assert torch.equal(runs[0][0], runs[1][0])
    for gradient, expected in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)

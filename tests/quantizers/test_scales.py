"""Learned scales: stored exactly, positive, and float32 whatever the network is cast to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bitswitch.errors import CalibrationError, PrepareError
from bitswitch.quantizers import ActivationQuantizer, PositiveScale, WeightQuantizer, ZeroPoint
from bitswitch.quantizers.scales import scale_of


@given(st.floats(2.0**-100, 2.0**100, width=32), st.sampled_from(["log", "raw"]))
def test_set_is_exact(value: float, parametrization: str) -> None:
    scale = PositiveScale((), parametrization)  # pyright: ignore[reportArgumentType]
    if parametrization == "raw" and value < 1e-8:
        return
    scale.set_(torch.tensor(value))
    assert scale.value().item() == value


def test_a_log_scale_moves_by_a_factor_and_stays_positive() -> None:
    scale = PositiveScale()
    scale.set_(torch.tensor(3e-4))
    optimizer = torch.optim.Adam(scale.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        scale.value().log().backward()  # always pushes down
        before = scale.value().item()
        optimizer.step()
        assert scale.value().item() / before == pytest.approx(torch.exp(torch.tensor(-0.1)).item(), rel=1e-5)
    assert 0 < scale.value().item() < 1e-16


def test_casting_a_network_keeps_scales_in_float32() -> None:
    quantizer = WeightQuantizer((4, 9), (8, 2))
    quantizer.scale.set_(torch.tensor(0.0123456789))
    inputs = ActivationQuantizer((8, 2), signed=True)
    before = quantizer.scale.value()
    nn.ModuleList([quantizer, inputs]).to(torch.bfloat16).half()
    assert torch.equal(quantizer.scale.value(), before)
    assert all(p.dtype == torch.float32 for p in [*quantizer.parameters(), *inputs.parameters()])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_scales_are_float32_whatever_the_default_is(kind: torch.dtype) -> None:
    try:
        torch.set_default_dtype(kind)
        quantizers = [WeightQuantizer((4, 9), (8, 2)), ActivationQuantizer((8, 2), signed=True)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(t.dtype == torch.float32 for quantizer in quantizers for t in quantizer.state_dict().values())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("parametrization", ["log", "raw"])
def test_an_assigned_state_becomes_float32(kind: torch.dtype, parametrization: str) -> None:
    source, target = (WeightQuantizer((4, 9), (8, 2), parametrization=parametrization) for _ in range(2))  # pyright: ignore[reportArgumentType]
    source.scale.set_(torch.tensor(0.25))
    inputs, others = (ActivationQuantizer((8, 2), signed=True) for _ in range(2))
    for bits in (8, 2):
        inputs.set_(bits, torch.tensor(0.125), 1)
    for old, new in ((source, target), (inputs, others)):
        state = {name: value.to(kind) for name, value in old.state_dict().items()}
        new.load_state_dict(state, assign=True)
        assert all(value.dtype == kind for value in state.values())
        assert all(torch.equal(value, old.state_dict()[name]) for name, value in new.state_dict().items())
        assert all(value.dtype == torch.float32 for value in new.state_dict().values())
    assert target.scale.parameter.requires_grad
    weight = torch.linspace(-30, 30, 36).view(4, 9)
    assert torch.equal(target(weight, 2), source(weight, 2))


def test_an_unset_activation_quantizer_says_what_to_do() -> None:
    quantizer = ActivationQuantizer((8, 2), signed=False)
    quantizer.set_(8, torch.tensor(0.1))  # one of two widths
    for call in (quantizer, quantizer.codes):
        with pytest.raises(CalibrationError, match="calibrate"):
            call(torch.zeros(3), 8)


def test_a_state_dict_carries_the_calibration() -> None:
    source, target = (ActivationQuantizer((8, 2), signed=True) for _ in range(2))
    for bits in (8, 2):
        source.set_(bits, torch.tensor(0.1), 1)
    target.load_state_dict(source.state_dict())
    assert target.calibrated
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(source(x, 2), target(x, 2))
    unset = ActivationQuantizer((8, 2), signed=True)
    target.load_state_dict(unset.state_dict())
    assert not target.calibrated


def test_a_zero_point_is_an_integer_of_its_range() -> None:
    zero_point = ZeroPoint(15)
    zero_point.set_(7)
    for shift, expected in ((0.0, 7), (0.03, 7), (0.04, 8), (1.0, 15), (-1.0, 0)):
        zero_point.shift.data.fill_(shift)
        assert zero_point.value().item() == expected


@pytest.mark.parametrize(("start", "wanted"), [(0, 3), (3, 0), (0, 0), (3, 3)])
def test_a_zero_point_leaves_an_end_of_its_range(start: int, wanted: int) -> None:
    zero_point = ZeroPoint(3)
    zero_point.set_(start)
    optimizer = torch.optim.Adam(zero_point.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (zero_point.value() - wanted).square().backward()
        optimizer.step()
    assert zero_point.value().item() == wanted


def test_no_gradient_pushes_a_zero_point_out_of_its_range() -> None:
    zero_point = ZeroPoint(3)
    for start, push in ((0, 1.0), (3, -1.0)):
        zero_point.set_(start)
        zero_point.shift.grad = None
        (push * zero_point.value()).backward()
        assert zero_point.shift.grad == 0


def test_a_raw_scale_that_fell_to_its_floor_rises_again() -> None:
    scale = PositiveScale((2,), "raw")
    scale.set_(torch.tensor([1e-3, 1.0]))
    optimizer = torch.optim.SGD(scale.parameters(), lr=1.0)
    for push in (0.01, -0.02):
        optimizer.zero_grad()
        (push * scale.value()).sum().backward()
        optimizer.step()
        assert (scale.value()[0].item() == pytest.approx(1e-8)) == (push > 0)
    assert scale.value().tolist() == pytest.approx([0.011, 1.01])


@pytest.mark.parametrize("group_size", [None, 0, -3, 5])
def test_a_group_size_must_divide(group_size: int | None) -> None:
    with pytest.raises(PrepareError, match="divides 27"):
        WeightQuantizer((4, 3, 3, 3), (8, 2), "group", group_size)


# PyTorch's own check reads gradients of intermediate tensors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_the_operator_of_scales_is_a_proper_one(shape: tuple[int, ...]) -> None:
    log, origin = torch.randn(shape, requires_grad=True), torch.rand(shape) + 0.1
    torch.library.opcheck(torch.ops.bitswitch.scale_of.default, (log, origin))
    assert torch.equal(torch.ops.bitswitch.scale_of(log, origin), scale_of(log, origin))

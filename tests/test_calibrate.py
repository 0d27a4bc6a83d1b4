"""calibrate: scales are the best of a search, eight bits are close to float, and bad data is named."""

from __future__ import annotations

import math
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch._initial import best_input_scale, best_weight_scale
from bitswitch.errors import ArgumentError, CalibrationError
from bitswitch.rounding import dequantize, double_round, int_range
from tests.networks import images, residual


def weights(rows: int = 2) -> Tensor:
    return torch.randn(rows, 400, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [3.0]])[:rows]


def relative_error(blocks: Tensor, scale: Tensor, stored_bits: int, bits: int) -> Tensor:
    codes = double_round(blocks, scale[:, None], stored_bits, bits)
    return (dequantize(codes, scale[:, None], stored_bits, bits) - blocks).norm(dim=1) / blocks.norm(dim=1)


@pytest.mark.parametrize("bits", [(8, 6, 4, 2), (4, 3, 2), (8, 4), (8,), (2,)])
def test_weight_scales_minimise_the_summed_relative_error(bits: tuple[int, ...]) -> None:
    blocks = weights()
    scale = best_weight_scale(blocks, bits)
    largest = blocks.abs().amax(1) / int_range(bits[0])[1]

    def cost(candidate: Tensor) -> Tensor:
        return torch.stack([relative_error(blocks, candidate, bits[0], b) for b in bits]).sum(0)

    fine = torch.stack([cost(largest * factor) for factor in torch.linspace(0.02, 2.0, 2000).tolist()]).amin(0)
    # A grid of 64 candidates comes within a tenth of one of 2,000.
    assert bool((cost(scale) <= 1.1 * fine).all())
    if bits[-1] == 2:
        codes = double_round(blocks, scale[:, None], bits[0], 2)
        assert float((codes != 0).float().mean()) > 0.3
    assert scale[1] / scale[0] == pytest.approx(30, rel=0.3)


def test_weight_scale_scales_with_the_weights() -> None:
    blocks = weights(1)
    torch.testing.assert_close(best_weight_scale(blocks * 8, (8, 2)), best_weight_scale(blocks, (8, 2)) * 8)


def test_zero_weights_get_a_usable_scale() -> None:
    scale = best_weight_scale(torch.zeros(1, 9), (8, 2))
    assert bool((scale > 0).all())
    assert math.isfinite(float(scale))
    assert bool((best_weight_scale(torch.full((1, 9), 1e-40), (8, 2)) >= torch.finfo(torch.float32).tiny).all())


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
@pytest.mark.parametrize("signed", [False, True])
def test_input_scales_are_near_the_optimum(bits: int, signed: bool) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1)) + 0.3
    x = x if signed else x.clamp(min=0)
    low, high = min(0.0, float(x.min())), float(x.max())
    scale, zero_point = best_input_scale(x, low, high, bits, signed=signed)
    top = 2**bits - 1

    def error(s: float, z: float) -> float:
        return float((((x / s).round() + z).clamp(0, top).sub(z) * s - x).square().mean())

    assert zero_point == round(zero_point)
    assert 0 <= zero_point <= top
    found = error(float(scale), zero_point)
    steps = [float(scale) * (1 + k / 50) for k in range(-40, 100)]
    shifts = range(max(0, int(zero_point) - 3), min(top, int(zero_point) + 3) + 1) if signed else [0]
    best = min(error(s, z) for s in steps for z in shifts)
    assert found <= 1.15 * best


@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("signed", [False, True])
def test_small_inputs_are_inputs(bits: int, signed: bool) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    x = x if signed else x.clamp(min=0)
    low, high = min(0.0, float(x.min())), float(x.max())
    scale, zero_point = best_input_scale(x, low, high, bits, signed=signed)
    factor = 2.0**-30
    small = best_input_scale(x * factor, low * factor, high * factor, bits, signed=signed)
    assert small == (scale * factor, zero_point)


def test_small_weights_are_weights() -> None:
    blocks = weights()
    for factor in (2.0**-20, 2.0**-30):
        assert torch.equal(best_weight_scale(blocks * factor, (8, 2)), best_weight_scale(blocks, (8, 2)) * factor)


def test_a_constant_input_is_no_problem() -> None:
    scale, zero_point = best_input_scale(torch.zeros(10), 0.0, 0.0, 4, signed=True)
    assert float(scale) > 0
    assert zero_point == 0


def test_calibration_alone_gives_eight_bits() -> None:
    network, x = residual(), images(64, seed=9)
    model = bs.prepare(network, example_inputs=x)
    bs.calibrate(model, images(64).split(16))
    model.eval()
    with torch.no_grad():
        error = (model(x) - network(x)).norm() / network(x).norm()
    assert float(error) < 0.1


def test_batchnorm_statistics_move_by_what_a_width_changes() -> None:
    """Against the definition, for the first BatchNorm behind a quantized layer."""
    network, batches = residual(), images(64).split(16)
    model = bs.prepare(network, example_inputs=images())
    bs.calibrate(model, batches)
    model.eval()
    for bits in (8, 2):
        mean, var = torch.zeros(8), torch.zeros(8)
        for x in batches:
            with bs.at(model, bits), torch.no_grad():
                hidden = torch.relu(network.stem_bn(network.stem(x)))
                exact = network.conv1(hidden)
                at_width = model.conv1(torch.relu(model.stem_bn(model.stem(x))))
            mean += network.bn1.running_mean + at_width.mean((0, 2, 3)) - exact.mean((0, 2, 3))
            ratio = (at_width.var((0, 2, 3), False) + 1e-5) / (exact.var((0, 2, 3), False) + 1e-5)
            var += network.bn1.running_var * ratio
        norm = model.bn1.norms[str(bits)]
        torch.testing.assert_close(norm.running_mean, mean / 4, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var / 4, rtol=1e-4, atol=1e-5)
    # The stem stays float, so its BatchNorm is the same at every width.
    assert all(torch.allclose(norm.running_mean, network.stem_bn.running_mean) for norm in model.stem_bn.norms.values())


def test_a_batch_without_rows_changes_no_statistics() -> None:
    with_empty, without = (bs.prepare(residual(), example_inputs=images()) for _ in range(2))
    bs.calibrate(with_empty, [images()[:0], images(16), images()[:0]])
    bs.calibrate(without, [images(16)])
    expected = without.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in with_empty.state_dict().items())


def test_batchnorm_statistics_move_once_and_on_request() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    bs.calibrate(model, [images(16)], batch_norm=False)
    assert torch.equal(model.bn1.norms["2"].running_var, residual().bn1.running_var)
    model = bs.prepare(residual(), example_inputs=images())
    bs.calibrate(model, [images(16)])
    moved = model.bn1.norms["2"].running_var.clone()
    assert not torch.equal(moved, residual().bn1.running_var)
    bs.calibrate(model, [images(16)])
    assert torch.equal(model.bn1.norms["2"].running_var, moved)


def test_calibrating_again_does_not_depend_on_the_active_width() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    bs.calibrate(model, [images(16)])
    with torch.no_grad():
        model.bn1.norms["2"].weight.mul_(3)
    scales = []
    for bits in (8, 2):
        bs.switch(model, bits)
        bs.calibrate(model, [images(16)])
        assert model.conv1.bits == bits
        scales.append(model.conv2.input_quantizer.scale_for(8).value().detach().clone())
    assert torch.equal(*scales)


@pytest.mark.parametrize("activations", [True, False])
def test_batchnorm_statistics_of_a_loaded_state_stay(activations: bool) -> None:
    def prepared() -> Any:
        return bs.prepare(residual(), example_inputs=images(), activations=activations)

    trained = prepared()
    bs.calibrate(trained, [images(16)])
    model = prepared()
    model.load_state_dict(trained.state_dict())
    bs.calibrate(model, [images(16, 1)])
    assert torch.equal(model.bn1.norms["2"].running_mean, trained.bn1.norms["2"].running_mean)
    # A part of a state is no calibration.
    model = prepared()
    model.load_state_dict({"head.bias": torch.zeros(10)}, strict=False)
    bs.calibrate(model, [images(16, 1)])
    assert not torch.equal(model.bn1.norms["2"].running_mean, residual().bn1.running_mean)


def test_calibration_is_deterministic_and_keeps_the_mode() -> None:
    scales = []
    for _ in range(2):
        model = bs.prepare(residual(), example_inputs=images()).train()
        bs.calibrate(model, [images(16), images(16, 1)])
        assert model.training
        scales.append([v.clone() for v in model.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*scales, strict=True))


@pytest.mark.parametrize("batch", [images(), (images(), torch.zeros(4)), [images()], {"x": images()}])
def test_forms_of_batches(batch: object) -> None:
    model = bs.prepare(residual(), example_inputs=images())
    bs.calibrate(model, [batch])
    model(images())


def test_a_forward_of_your_own() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    bs.calibrate(model, [{"pixels": images()}], forward=lambda network, batch: network(batch["pixels"]))
    model(images())


def test_bad_batches() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    with pytest.raises(CalibrationError, match="at least one batch"):
        bs.calibrate(model, [])
    x = images()
    x[0, 0, 0, 0] = math.nan
    with pytest.raises(CalibrationError, match="input of layer 'conv1' has NaN"):
        bs.calibrate(model, [x])


def test_calibrate_needs_a_prepared_model() -> None:
    with pytest.raises(bs.BitswitchError, match="not prepared"):
        bs.calibrate(nn.Linear(2, 2), [torch.zeros(1, 2)])


def test_a_wrongly_unsigned_layer_is_found() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    model.conv1.input_quantizer.signed = False
    model.stem_bn.forward = lambda x: x  # the ReLU stays, so break it as well
    torch_relu = torch.nn.functional.relu
    try:
        torch.nn.functional.relu = lambda x: x
        with pytest.raises(CalibrationError, match="never negative, but saw -"):
            bs.calibrate(model, [images()])
    finally:
        torch.nn.functional.relu = torch_relu


def test_a_layer_that_is_refused_leaves_the_others_as_they_were() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    bs.calibrate(model, [images()])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.conv2.register_forward_pre_hook(lambda _layer, args: (args[0] - 1,))
    with pytest.raises(CalibrationError, match="layer 'conv2' was taken to have inputs that are never negative"):
        bs.calibrate(model, [3 * images()])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_calibrate_refuses() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    with pytest.raises(ArgumentError, match="put a single tensor into a list"):
        bs.calibrate(model, images())
    for batch in ({"x": images()}, UserDict(x=images())):
        with pytest.raises(ArgumentError, match=f"put a single {type(batch).__name__} into a list"):
            bs.calibrate(model, batch)
    bs.calibrate(model, [images()])
    layer = model.conv1
    layer.set_codes(layer.weight_codes(8), layer.weight_quantizer.scale.value().detach(), 8)
    with pytest.raises(CalibrationError, match="layer 'conv1' holds stored integers and trained scales"):
        bs.calibrate(model, [images()])


def test_a_forward_pass_before_calibration_names_the_layer() -> None:
    model = bs.prepare(residual(), example_inputs=images())
    with pytest.raises(CalibrationError, match="the input of layer 'conv1' has no scales yet"):
        model(images())

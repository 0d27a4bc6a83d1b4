"""What every switchable layer does beside its forward: frozen state, ties, copies, casts, formats, compilation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.errors import PrepareError
from bitswitch.layers.base import float_forward, iter_layers
from bitswitch.layers.norm import make_per_width
from bitswitch.rounding import second_round
from tests.layers.reference import BITS, input_of, seeded, switchable, weight_of
from tests.networks import images, residual


def linear(granularity: str = "tensor") -> Any:
    torch.manual_seed(0)
    return switchable(nn.Linear(6, 4), granularity)


def freeze(layer: Any, num_planes: int = 8) -> None:
    codes = layer.weight_codes(8)
    if num_planes < 8:
        codes = (codes.to(torch.int16) + 128 >> (8 - num_planes) << (8 - num_planes)).sub(128).to(torch.int8)
    layer.set_codes(codes, layer.weight_quantizer.scale.value().detach(), num_planes)


def prepared(channels: int = 4) -> Any:
    model = bs.prepare(residual(channels=channels), (8, 4, 2), example_inputs=images())
    bs.calibrate(model, [images()])
    return model


def test_the_weight_of_a_frozen_layer_is_computed_and_read_only() -> None:
    layer = linear()
    expected = {bits: weight_of(layer, bits) for bits in BITS}
    freeze(layer)
    assert layer.is_frozen
    assert dict(layer.named_parameters(recurse=False)).keys() == {"bias"}
    assert not layer.weight_quantizer.scale.parameter.requires_grad
    for bits in BITS:
        layer.bits = bits
        assert torch.equal(layer.weight, expected[bits])
    with pytest.raises(PrepareError, match="read-only; call bitswitch.unfreeze"):
        layer.weight = nn.Parameter(torch.zeros(4, 6))
    layer.unfreeze()
    assert layer.weight.requires_grad
    assert layer.weight_quantizer.scale.parameter.requires_grad
    layer.unfreeze()  # nothing left to do


@pytest.mark.parametrize("bits", BITS)
def test_the_planes_that_a_width_needs_are_enough(bits: int) -> None:
    whole, part = linear(), linear()
    freeze(part, 8 if bits == 8 else bits + 1)
    whole.bits = part.bits = bits
    x = seeded(3, 6)
    assert torch.equal(whole(x), part(x))


def test_refining_reads_the_missing_planes() -> None:
    whole, part = linear(), linear()
    freeze(part, 3)
    with pytest.raises(PrepareError, match="only 3 of 8 bit planes"):
        part.unfreeze()
    part.refine(whole.weight_codes(8), 8)
    part.unfreeze()
    assert torch.equal(part.weight, weight_of(whole, 8))


def test_one_scale_a_width_cannot_be_frozen() -> None:
    model = bs.prepare(residual(), (8, 2), example_inputs=images(), shared=False)
    layer = model.get_submodule("conv1")
    with pytest.raises(PrepareError, match="shared=False"):
        layer.set_codes(layer.weight_codes(8), torch.ones(()), 8)  # pyright: ignore[reportCallIssue]


def test_float_forward_is_undone() -> None:
    layer = linear()
    x = seeded(3, 6)
    with float_forward(layer):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    with pytest.raises(RuntimeError), float_forward(layer):
        layer(seeded(3, 5))
    assert torch.equal(layer(x), F.linear(input_of(layer, x, 8), weight_of(layer, 8), layer.bias))


class Shared(nn.Module):
    """A linear layer that runs twice, and another that has the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.tied, self.last = (nn.Linear(6, 6) for _ in range(4))
        self.tied.weight = self.twice.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.tied(torch.tanh(self.twice(x)))))


def test_tied_and_reused_layers() -> None:
    torch.manual_seed(0)
    model = bs.prepare(Shared(), BITS, example_inputs=seeded(3, 6))
    x = seeded(16, 6)
    bs.calibrate(model, [x])
    model.twice.bits, model.tied.bits = 4, 2
    twice, tied = weight_of(model.twice, 4), weight_of(model.tied, 2)
    y = torch.tanh(model.first(x))
    for layer, weight, bits in ((model.twice, twice, 4), (model.twice, twice, 4), (model.tied, tied, 2)):
        y = torch.tanh(F.linear(input_of(layer, y, bits), weight, layer.bias))
    torch.testing.assert_close(model(x), model.last(y), rtol=1e-6, atol=1e-6)
    model(x).sum().backward()
    assert [name for name, _ in model.named_parameters() if name.endswith("tied.weight")] == []
    assert model.tied.weight.grad is model.twice.weight.grad
    codes = model.twice.weight_codes(8)
    for layer in (model.twice, model.tied):
        layer.set_codes(codes, layer.weight_quantizer.scale.value().detach(), 8)
    expected = model(x)
    bs.unfreeze(model)
    assert model.tied.weight is model.twice.weight
    assert torch.equal(model(x), expected)


def test_state_dict_round_trip() -> None:
    model = prepared()
    other = bs.prepare(residual(seed=1), (8, 4, 2), example_inputs=images())
    other.load_state_dict(model.state_dict())
    for bits in (8, 4, 2):
        bs.switch(model, bits)
        bs.switch(other, bits)
        assert torch.equal(model(images()), other(images()))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_deep_copy_shares_nothing(frozen: bool) -> None:
    model = prepared()
    if frozen:
        for _, layer in iter_layers(model):
            freeze(layer)
    twin = copy.deepcopy(model)
    expected = model(images())
    assert torch.equal(twin(images()), expected)
    with torch.no_grad():
        for tensor in (*twin.parameters(), *(b for b in twin.buffers() if b.dtype == torch.int8)):
            tensor.zero_()
    bs.switch(twin, 2)
    assert torch.equal(model(images()), expected)


def test_bfloat16_keeps_scales_and_codes() -> None:
    layer = linear("channel")
    scale = layer.weight_quantizer.scale.value().detach().clone()
    layer.to(torch.bfloat16)
    x = seeded(3, 6).to(torch.bfloat16)
    assert torch.equal(layer.weight_quantizer.scale.value(), scale)
    for bits in BITS:
        layer.bits = bits
        weight = weight_of(layer, bits)  # of the bfloat16 weight, in float32
        quantized = input_of(layer, x.float(), bits).to(torch.bfloat16)
        expected = F.linear(quantized, weight.to(torch.bfloat16), layer.bias)
        assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    layer(x).sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16
    assert layer.weight_quantizer.scale.log.grad.dtype == torch.float32


def test_autocast_changes_no_code() -> None:
    layer = linear()
    x = seeded(3, 6)
    for bits in BITS:
        layer.bits = bits
        codes = layer.weight_codes()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
            assert torch.equal(layer.weight_codes(), codes)
            assert torch.equal(layer.quantized_weight(), weight_of(layer, bits))
        assert output.dtype == torch.bfloat16
        exact = F.linear(input_of(layer, x, bits), weight_of(layer, bits), layer.bias)
        torch.testing.assert_close(output.float(), exact, rtol=3e-2, atol=3e-2)


def test_channels_last() -> None:
    # With fewer channels, oneDNN writes past a buffer in the backward pass of a strided 1x1 convolution.
    model = prepared(channels=16)
    expected = model(images())
    model = model.to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last)
    assert model.conv1(model.stem(x)).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    codes = model.conv1.weight_codes()
    assert codes.is_contiguous()
    model(x).square().sum().backward()
    plain = prepared(channels=16)
    plain(images()).square().sum().backward()
    torch.testing.assert_close(model.conv1.weight.grad, plain.conv1.weight.grad, rtol=1e-3, atol=1e-4)
    found, expected = (m.conv1.weight_quantizer.scale.raw_grad() for m in (model, plain))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_compiled_at_uniform_widths() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(switchable(nn.Linear(6, 6)), nn.BatchNorm1d(6), switchable(nn.Linear(6, 4), signed=True))
    freeze(network[2])
    make_per_width(network[1], BITS)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    x = seeded(5, 6)
    for bits in (8, 4, 2, 8):
        network[0].bits = network[2].bits = bits  # pyright: ignore[reportArgumentType]
        network[1].key = str(bits)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-6)


def test_every_device_move_keeps_the_class() -> None:
    model = prepared().to("cpu").eval()
    assert all(isinstance(layer, nn.Conv2d) for _, layer in iter_layers(model))
    assert all("bits=8 of (8, 4, 2)" in repr(layer) for _, layer in iter_layers(model))


def test_second_rounding_of_frozen_codes() -> None:
    layer = linear()
    freeze(layer)
    for bits in BITS:
        assert torch.equal(layer.weight_codes(bits), second_round(layer.codes, 8, bits))

"""Layers and attention of other libraries: transformers' Conv1D and torchvision's Swin."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from bitswitch.layers.adapters import adapt
from bitswitch.layers.registry import has_weight
from tests.layers.reference import BITS, input_of, seeded, switchable, weight_of

transformers_utils = pytest.importorskip("transformers.pytorch_utils")
swin = pytest.importorskip("torchvision.models.swin_transformer")


@pytest.mark.parametrize(("granularity", "group_size"), [("tensor", None), ("channel", None), ("group", 3)])
def test_conv1d(granularity: str, group_size: int | None) -> None:
    plain = transformers_utils.Conv1D(4, 6)
    assert has_weight(plain)
    layer = switchable(plain, granularity, group_size)
    assert isinstance(layer, transformers_utils.Conv1D)
    x = seeded(2, 3, 6)
    expected = {}
    for bits in BITS:
        layer.bits = bits
        weight = weight_of(layer, bits)
        assert layer.weight_codes().shape == (4, 6)
        expected[bits] = layer(x)
        torch.testing.assert_close(layer(x), input_of(layer, x, bits) @ weight + layer.bias, rtol=1e-5, atol=1e-6)
    layer(x.transpose(0, 1)).sum().backward()
    assert layer.weight.grad.shape == (6, 4)
    layer.set_codes(layer.weight_codes(8), layer.weight_quantizer.scale.value().detach(), 8)
    for bits in BITS:
        layer.bits = bits
        assert torch.equal(layer(x), expected[bits])
    layer.unfreeze()
    assert torch.equal(layer(x), expected[BITS[-1]])
    assert repr(layer).endswith("nf=4, nx=6, bits=2 of (8, 6, 4, 3, 2))")


def window_attention(version: int, shift: list[int], bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    kind = swin.ShiftedWindowAttention if version == 1 else swin.ShiftedWindowAttentionV2
    module = kind(12, [4, 4], shift, 3, qkv_bias=bias, attention_dropout=0.2, dropout=0.1)
    if bias:
        nn.init.normal_(module.qkv.bias)
    nn.init.normal_(module.proj.bias)
    return module


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (4, 9), (2, 3)])
@pytest.mark.parametrize("shift", [[0, 0], [2, 2], [1, 3]])
def test_window_attention_keeps_its_function(version: int, size: tuple[int, int], shift: list[int]) -> None:
    module = window_attention(version, shift)
    other = copy.deepcopy(module)
    adapt(other)
    assert isinstance(other, type(module))
    results = []
    for net in (module, other):
        x = seeded(2, *size, 12).requires_grad_()
        torch.manual_seed(1)  # the same elements are dropped
        output = net.train()(x)
        output.square().sum().backward()
        results.append((output, x.grad, net.qkv.weight.grad, net.proj.weight.grad, net.eval()(x)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_window_attention_of_the_second_version_has_no_key_bias() -> None:
    module = window_attention(2, [2, 2])
    other = copy.deepcopy(module)
    adapt(other)
    for net in (module, other):
        net.eval()(seeded(1, 8, 8, 12)).square().sum().backward()
    gradient = module.qkv.bias.grad
    torch.testing.assert_close(
        torch.cat([other.q_bias.grad, other.v_bias.grad]), torch.cat([gradient[:12], gradient[24:]])
    )
    bare = window_attention(2, [2, 2], bias=False)
    twin = copy.deepcopy(bare)
    adapt(twin)
    x = seeded(1, 8, 8, 12)
    torch.testing.assert_close(twin.eval()(x), bare.eval()(x))


def test_nothing_is_imported_before_it_is_met() -> None:
    code = "import bitswitch, sys; assert not {'torchvision', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

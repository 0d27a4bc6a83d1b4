"""Embeddings look rows up before they round them, which is the same as the other way round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.errors import PrepareError
from tests.layers.reference import BITS, seeded, switchable, weight_of

TOKENS = torch.tensor([[0, 3, 3], [6, 2, 0]])


def embedding(granularity: str = "tensor", **options: Any) -> Any:
    torch.manual_seed(0)
    return switchable(nn.Embedding(7, 6, **options), granularity, 3 if granularity == "group" else None, signed=None)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[0], torch.tensor(4), torch.zeros(0, dtype=torch.int64)], ids=str)
def test_lookup_of_the_quantized_table(granularity: str, tokens: Tensor) -> None:
    layer = embedding(granularity)
    expected = {}
    for bits in BITS:
        layer.bits = bits
        expected[bits] = weight_of(layer, bits)[tokens]
        assert torch.equal(layer(tokens), expected[bits])
    layer.set_codes(layer.weight_codes(8), layer.weight_quantizer.scale.value().detach(), 8)
    for bits in BITS:
        layer.bits = bits
        assert torch.equal(layer(tokens), expected[bits])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("token", [-1, 7])
def test_rows_that_are_not_there(token: int, frozen: bool) -> None:
    layer = embedding()
    if frozen:
        layer.set_codes(layer.weight_codes(8), layer.weight_quantizer.scale.value().detach(), 8)
    with pytest.raises(IndexError):
        layer(torch.tensor([0, token]))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_gradients_are_those_of_the_whole_table(granularity: str) -> None:
    layer, table = embedding(granularity), embedding(granularity)
    direction = seeded(2, 3, 6)
    layer.bits = table.bits = 4
    layer(TOKENS).backward(direction)
    table.quantized_weight()[TOKENS].backward(direction)
    torch.testing.assert_close(layer.weight.grad, table.weight.grad)
    torch.testing.assert_close(layer.weight_quantizer.scale.log.grad, table.weight_quantizer.scale.log.grad)


def test_the_padding_row_gets_no_gradient() -> None:
    layer = embedding(padding_idx=3)
    layer(TOKENS).sum().backward()
    assert bool((layer.weight.grad[3] == 0).all())
    assert bool((layer.weight.grad[0] != 0).any())


def test_rows_that_lookups_change_cannot_be_quantized() -> None:
    network = nn.Sequential(nn.Embedding(7, 6, max_norm=1.0), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(PrepareError, match="layer '0' cannot be quantized: max_norm"):
        bs.prepare(network, example_inputs=TOKENS, force="0")


def test_rows_keep_the_type_of_the_table() -> None:
    layer = embedding().to(torch.bfloat16)
    layer.bits = 4
    expected = layer(TOKENS)
    assert expected.dtype == torch.bfloat16
    layer.set_codes(layer.weight_codes(8), layer.weight_quantizer.scale.value().detach(), 8)
    assert layer.codes.dtype == torch.int8
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight[TOKENS], expected)
    torch.testing.assert_close(layer(TOKENS), expected, rtol=0, atol=0)
    assert layer.float()(TOKENS).dtype == torch.float32
    layer.bfloat16().unfreeze()
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(layer(TOKENS), expected, rtol=0, atol=0)

"""Layers that hold the weight of others and are never called themselves, such as `shared` of T5."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.errors import BitswitchWarning, PrepareError
from bitswitch.layers.table import state_of
from bitswitch.mixed import extract, measure_costs

TOKENS = torch.arange(12).view(2, 6) % 11
TIED = ("shared", "encoder", "decoder", "head")


class EncoderDecoder(nn.Module):
    """One weight in four modules, the first of which is never called."""

    def __init__(self, spare: nn.Module | None = None) -> None:
        super().__init__()
        self.shared = nn.Embedding(11, 8) if spare is None else spare
        self.encoder, self.decoder = nn.Embedding(11, 8), nn.Embedding(11, 8)
        self.body, self.cross = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.encoder.weight = self.decoder.weight = self.head.weight = self.shared.weight  # pyright: ignore

    def forward(self, tokens: Tensor) -> Tensor:
        memory = F.relu(self.body(self.encoder(tokens))).mean(1, keepdim=True)
        return self.head(F.relu(self.cross(memory + self.decoder(tokens))))


def network(seed: int = 0) -> EncoderDecoder:
    torch.manual_seed(seed)
    return EncoderDecoder()


def prepared(**options: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bs.prepare(network(), (8, 4, 2), example_inputs=TOKENS, **options)  # pyright: ignore
    bs.calibrate(model, [TOKENS])
    return model.eval()


@torch.no_grad()
def outputs(model: nn.Module) -> list[Tensor]:
    results = []
    for bits in (8, 4, 2):
        bs.switch(model, bits)
        results.append(model(TOKENS))
    return results


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(outputs(one), outputs(other), strict=True))


@pytest.mark.parametrize("force", [TIED[1:], TIED])
def test_it_follows_those_that_are_forced(force: tuple[str, ...]) -> None:
    model = prepared(force=force)
    table = state_of(model).table
    assert [table[name].status for name in TIED] == ["quantized"] * 4
    assert [table[name].alias_of for name in TIED] == [None, "shared", "shared", "shared"]
    assert all(table[name].bits == (8, 4, 2) for name in TIED)
    assert len({id(model.get_submodule(name).weight) for name in TIED}) == 1
    assert bs.summary(model).num_quantized == 11 * 8 + 2 * 64
    assert measure_costs(model, TOKENS).layers["shared"].num_macs == 0
    model.train()(TOKENS).sum().backward()
    assert model.get_submodule("shared").weight.grad is not None


def test_it_follows_those_that_are_pinned() -> None:
    table = state_of(prepared(first_last=8)).table
    assert [(table[name].status, table[name].bits) for name in TIED] == [("quantized", (8,))] * 4
    assert table["shared"].reason == "first layer, 8 bits"


@pytest.mark.parametrize("options", [{"first_last": 8}, {"force": TIED[1:]}], ids=["pinned", "forced"])
def test_the_tie_survives_files_and_training(options: dict[str, object], tmp_path: Path) -> None:
    model = prepared(**options)
    bs.save(model, tmp_path)
    loaded = bs.load(tmp_path, into=network(1))
    assert_same(model, loaded)
    codes = {loaded.get_submodule(name).codes.data_ptr() for name in TIED}  # pyright: ignore
    assert len(codes) == 1
    bs.switch(loaded, 8)
    bs.unfreeze(loaded)
    assert len({id(loaded.get_submodule(name).weight) for name in TIED}) == 1
    assert_same(model, loaded)
    again = prepared(**options)
    with torch.no_grad():
        again.get_submodule("shared").weight.zero_()  # pyright: ignore
    again.load_state_dict(model.state_dict())
    assert_same(model, again)
    engine = bs.deploy(tmp_path, into=network(1), bits=4)
    with torch.no_grad(), bs.at(model, 4):
        assert torch.equal(extract(model, 4)(TOKENS), model(TOKENS))
        assert torch.allclose(engine(TOKENS), model(TOKENS), atol=1e-5)


def test_of_float_layers_there_is_nothing_to_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bs.prepare(network(), example_inputs=TOKENS)
    assert state_of(model).table["shared"].reason == "shares its weight with encoder, which stays float"
    assert bs.summary(model).num_weights == 11 * 8 + 2 * 64


def test_all_that_must_be_forced_are_named() -> None:
    with pytest.raises(PrepareError, match=r"with 'encoder', .*\(first layer\); force all of 'encoder', 'decoder'$"):
        bs.prepare(network(), force="head", example_inputs=TOKENS)
    with pytest.raises(PrepareError, match=r"'shared', which stays float \(skipped on request\); force both"):
        bs.prepare(network(), force=TIED[1:], skip="shared", example_inputs=TOKENS)
    assert "shared" in state_of(bs.prepare(network(), force=TIED, skip="shared", example_inputs=TOKENS)).table.available


def test_one_whose_input_would_need_scales_must_go() -> None:
    def with_spare() -> nn.Module:
        return EncoderDecoder(nn.Linear(8, 11, bias=False))

    with pytest.raises(PrepareError, match=r"with 'shared'.*forward is not called.*; take 'shared' out of the network"):
        bs.prepare(with_spare(), force=TIED[1:], example_inputs=TOKENS)
    with pytest.warns(BitswitchWarning, match=r"1 layers with weights stay in full precision:\s+shared: its forward"):
        model = bs.prepare(with_spare(), first_last=8, example_inputs=TOKENS)
    assert state_of(model).table["head"].reason == "shares its weight with shared, which stays float"
    weights_only = bs.prepare(with_spare(), force=TIED[1:], activations=False, example_inputs=TOKENS)
    assert state_of(weights_only).table["shared"].status == "quantized"

"""Matrices that are parameters of no layer of a known kind: in the table, in the figures, and in the warning."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.checkpoint import load, save
from bitswitch.errors import BitswitchWarning, CheckpointError, PrepareError
from bitswitch.layers.table import LayerTable
from bitswitch.mixed import hessian_trace, measure_costs
from bitswitch.mixed.sensitivity import fingerprint


class Experts(nn.Module):
    def __init__(self, count: int = 4, width: int = 8) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, width, width))
        self.bias = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.linear(x, one) for one in self.up]).mean(0) + self.bias.squeeze()


class Network(nn.Module):
    """Two quantized layers of 8×8 between a first and a last one, experts, and a position embedding."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.randn(1, 3, 8))
        self.first = nn.Linear(4, 8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.middle = Experts() if middle is None else middle
        self.norm = nn.LayerNorm((3, 8))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.b(self.middle(self.a(self.first(x) + self.pos)))))


X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def table_of(model: nn.Module) -> LayerTable:
    return bs.summary(model).table


def prepared(network: nn.Module) -> nn.Module:
    return bs.prepare(network, (8, 4, 2), example_inputs=X, skip=Experts)


def test_bare_matrices_have_rows_in_the_order_of_the_model() -> None:
    with pytest.warns(BitswitchWarning) as seen:
        model = bs.prepare(Network(), (8, 4, 2), example_inputs=X)
    table = table_of(model)
    assert list(table) == ["pos", "first", "a", "b", "middle.up", "last"]
    row = table["middle.up"]
    assert (row.kind, row.status, row.shape) == ("Parameter", "float", (4, 8, 8))
    assert row.reason == "Experts is no layer of a known kind"
    # The embedding is small: 24 of 64 weights.
    (message,) = [str(warning.message) for warning in seen]
    assert "1 layers" in message
    assert "middle.up: Experts is no layer" in message


def test_figures_by_hand() -> None:
    model = prepared(Network())
    found = bs.summary(model)
    rest = 3 * 8 + 4 * 8 + 4 * 8 * 8 + 8 * 2
    assert (found.num_quantized, found.num_weights) == (2 * 64, 2 * 64 + rest)
    assert measure_costs(model).float_bytes == 4 * rest
    assert measure_costs(model).of(2).weight_bytes == found.bytes_at(2)


@pytest.mark.parametrize("skip", [Experts, "middle", "middle.up", "*.up"])
def test_skipped_ones_are_not_warned_of(skip: str | type[nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bs.prepare(Network(), (8, 4, 2), example_inputs=X, skip=skip)
    assert table_of(model)["middle.up"].reason == "skipped on request"


def test_they_cannot_be_forced() -> None:
    with pytest.raises(PrepareError, match=r"force='middle.up' matches no layer"):
        bs.prepare(Network(), (8, 4, 2), example_inputs=X, force="middle.up")
    # A pattern that covers layers as well means these.
    assert (
        "first" in table_of(bs.prepare(Network(), (8, 2), example_inputs=X, force="*", skip=(Experts, "pos"))).available
    )


class Listed(nn.Module):
    """Many matrices, each small."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.randn(8, 2)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return x + sum(x @ part @ part.T for part in self.parts)


def test_small_ones_of_a_module_count_together() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bs.prepare(Network(Listed(1)), (8, 4, 2), example_inputs=X)
    with pytest.warns(BitswitchWarning, match=r"middle.parts.1: ParameterList is no layer"):
        bs.prepare(Network(Listed(2)), (8, 4, 2), example_inputs=X)


class Adapted(nn.Linear):
    """A layer with a matrix besides its weight."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.more = nn.Parameter(torch.randn(8, 8))


def test_a_matrix_besides_the_weight_of_a_layer() -> None:
    with pytest.warns(BitswitchWarning, match=r"middle.more: Adapted has it besides its weight"):
        table = table_of(bs.prepare(Network(Adapted()), (8, 4, 2), example_inputs=X))
    assert table["middle"].status == "quantized"
    assert table["middle.more"].shape == (8, 8)


def test_one_that_a_layer_shares_has_no_row() -> None:
    network = Network()
    network.middle.same = network.b.weight  # pyright: ignore
    assert "middle.same" not in table_of(prepared(network))


def test_checkpoints_keep_the_rows(tmp_path: Path) -> None:
    model = prepared(Network())
    bs.calibrate(model, [X])
    save(model, tmp_path)
    loaded = load(tmp_path, into=Network())
    assert str(bs.summary(loaded)) == str(bs.summary(model))
    assert torch.equal(loaded(X), model.eval()(X))
    with pytest.raises(CheckpointError, match=r"parameter 'middle.up' has not the shape"):
        load(tmp_path, into=Network(Experts(3)))


def test_sensitivities_are_of_layers_only() -> None:
    network = Network()
    model = prepared(network)
    assert fingerprint(model) == fingerprint(network)
    found = hessian_trace(model, of_tokens, [X], method="hessian", max_probes=2)
    assert set(found.layers) == {"first", "a", "b", "last"}


def of_tokens(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def test_mixtral() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        num_local_experts=8,
    )
    network = transformers.MixtralForCausalLM(config)
    with pytest.warns(BitswitchWarning) as seen:
        model = bs.prepare(network, example_inputs={"input_ids": torch.arange(8).view(1, 8), "use_cache": False})
    found = bs.summary(model)
    matrices = {id(p): p.numel() for p in network.parameters() if p.dim() > 1}
    assert found.num_weights == sum(matrices.values())
    assert measure_costs(model).float_bytes == 4 * (found.num_weights - found.num_quantized)
    text = str(seen[0].message)
    for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
        assert f"model.layers.1.mlp.{name}: " in text

"""The table of a prepared model, and its figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch._summary import format_bytes, summary
from bitswitch.checkpoint import load, save
from bitswitch.errors import PrepareError
from bitswitch.mixed import measure_costs
from tests.networks import Residual


def prepared(**options: object) -> nn.Module:
    torch.manual_seed(0)
    model = bs.prepare(Residual(), (8, 4, 2), example_inputs=torch.zeros(1, 3, 8, 8), **options)  # pyright: ignore
    bs.calibrate(model, [torch.randn(8, 3, 8, 8)])
    return model


def test_one_line_a_layer() -> None:
    found = summary(prepared())
    lines = str(found).splitlines()
    rows = {line.split()[0]: line for line in lines[2 : 2 + len(found.table)]}
    assert set(rows) == set(found.table)
    assert "first layer" in rows["stem"]
    assert "8 4 2" in rows["conv1"]
    assert "per-width" in rows["bn1"]
    assert rows["conv2"].split()[-2:] == ["8×8×3×3", "576"]


def test_figures_by_hand() -> None:
    found = summary(prepared())
    quantized = [8 * 4 * 9, 8 * 8 * 9, 8 * 4]
    rest = 4 * 3 * 9 + 10 * 8
    assert found.num_quantized == sum(quantized)
    assert found.num_weights == sum(quantized) + rest
    for bits, planes in ((8, 8), (4, 5), (2, 3)):
        assert found.bytes_at(bits) == sum(planes * math.ceil(n / 8) for n in quantized) + 4 * rest
    assert f"{100 * sum(quantized) / (sum(quantized) + rest):.1f} % of" in str(found)


def test_midrise_widths_take_one_plane_less() -> None:
    plain, found = summary(prepared()), summary(prepared(midrise=(2,)))
    assert plain.bytes_at(2) - found.bytes_at(2) == (288 + 576 + 32) / 8
    assert plain.bytes_at(4) == found.bytes_at(4)
    assert "odd multiples of half a step (mid-rise) at 2 bits" in str(found)
    assert "mid-rise" not in str(plain)


def test_unshared_scales_save_nothing() -> None:
    found = summary(prepared(shared=False))
    assert found.bytes_at(2) == found.float_bytes


def test_pinned_layers_keep_their_width() -> None:
    found = summary(prepared(first_last=8))
    assert found.num_quantized == found.num_weights
    assert found.bytes_at(8) - found.bytes_at(2) == 5 * (288 + 576 + 32) / 8


def test_a_loaded_model_has_the_same_table(tmp_path: Path) -> None:
    model = prepared()
    save(model, tmp_path)
    assert str(summary(load(tmp_path, into=Residual(), bits=2))) == str(summary(model))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 100, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)))


class Recurrent(nn.Module):
    """Layers with weights that are not one of their own name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 64)
        self.cell = nn.GRUCell(64, 64)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
        self.middle = nn.Linear(64, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.normed(self.cell(self.lstm(self.first(x))[0]))))


RECURRENT = {"lstm": 4 * 64 * (8 + 64), "cell": 3 * 64 * (64 + 64), "normed": 64 * 64 + 64}


def test_a_weight_that_float_layers_share_counts_once(tmp_path: Path) -> None:
    tokens = torch.arange(6).view(2, 3)
    model = bs.prepare(Tied(), example_inputs=tokens)
    found = summary(model)
    assert (found.num_weights, found.num_quantized) == (800 + 2 * 64, 2 * 64)
    assert found.table["head"].alias_of == "embed"
    assert "last layer; shares the weight of embed" in str(found)
    assert measure_costs(model).float_bytes == 4 * 800
    bs.calibrate(model, [tokens])
    save(model, tmp_path)
    assert str(summary(load(tmp_path, into=Tied()))) == str(found)


@pytest.mark.filterwarnings("ignore::bitswitch.errors.BitswitchWarning")
def test_weights_of_recurrent_and_parametrized_layers_count(tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    model = bs.prepare(Recurrent(), example_inputs=x)
    found = summary(model)
    assert {name: found.table[name].num_weights for name in RECURRENT} == RECURRENT
    assert found.num_weights == 64 + sum(RECURRENT.values()) + 512 + 24
    assert found.num_quantized == 512
    assert measure_costs(model).float_bytes == 4 * (found.num_weights - 512)
    assert measure_costs(model).of(4).weight_bytes == found.bytes_at(4)
    lstm = next(line for line in str(found).splitlines() if line.startswith("lstm"))
    assert "18,432" in lstm
    bs.calibrate(model, [x])
    save(model, tmp_path)
    assert str(summary(load(tmp_path, into=Recurrent()))) == str(found)


@pytest.mark.filterwarnings("ignore::bitswitch.errors.BitswitchWarning")
def test_a_weight_of_a_recurrent_layer_that_an_earlier_layer_has_counts_there() -> None:
    network = Recurrent()
    network.cell.weight_hh = nn.Parameter(network.lstm.weight_hh_l0.detach()[:192])
    second = nn.GRUCell(64, 64)
    second.weight_hh = network.cell.weight_hh
    network.cell = nn.Sequential(network.cell, second)
    table = summary(bs.prepare(network, example_inputs=torch.randn(4, 8))).table
    assert (table["cell.0"].num_weights, table["cell.1"].num_weights) == (2 * 192 * 64, 192 * 64)


def test_float_models_have_none() -> None:
    with pytest.raises(PrepareError):
        summary(Residual())


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_600, "1 MB")]
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text

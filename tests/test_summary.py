"""The table of a prepared model, and its figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import bitswitch as bs
from bitswitch._summary import format_bytes, summary
from bitswitch.checkpoint import load, save
from bitswitch.errors import PrepareError
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


def test_float_models_have_none() -> None:
    with pytest.raises(PrepareError):
        summary(Residual())


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_600, "1 MB")]
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert format_bytes(size) == text

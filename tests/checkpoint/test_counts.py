"""Counts of codes against a count code by code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitswitch as bs
from bitswitch.checkpoint import read_info
from bitswitch.checkpoint.counts import count_codes, sum_counts
from bitswitch.errors import ConfigError


def prepared(bits: tuple[int, ...], **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3))
        x = torch.randn(16, 5)
    model = bs.prepare(net, bits, example_inputs=x, **options)
    bs.calibrate(model, [x])
    return model


def expected(model: nn.Module, name: str, stored: int, bits: int, midrise: tuple[int, ...] = ()) -> list[int]:
    """Round ⌊w/s⌉ once more and count, element by element."""
    layer: Any = model.get_submodule(name)
    scale = float(layer.weight_quantizer.scale.value().detach())
    counts = [0] * 2**bits
    for value in layer.weight.detach().flatten().tolist():
        code = min(max(round(value / scale), -(2 ** (stored - 1))), 2 ** (stored - 1) - 1)
        code = min(math.floor(code / 2 ** (stored - bits) + 0.5 * (bits not in midrise)), 2 ** (bits - 1) - 1)
        counts[code + 2 ** (bits - 1)] += 1
    return counts


@pytest.mark.parametrize(("bits", "midrise"), [((8, 4, 2), ()), ((5, 3), ()), ((8, 4, 2), (4, 2))])
def test_every_code_is_counted_at_every_width(tmp_path: Path, bits: tuple[int, ...], midrise: tuple[int, ...]) -> None:
    model = prepared(bits, midrise=midrise)
    bs.save(model, tmp_path / "model")
    counts = count_codes(read_info(tmp_path / "model"))
    assert list(counts) == ["2", "4"]
    for name, own in counts.items():
        assert {width: found.tolist() for width, found in own.items()} == {
            width: expected(model, name, bits[0], width, midrise) for width in bits
        }
    total = sum_counts(list(counts.values()))
    assert list(total) == list(bits)
    assert {int(found.sum()) for found in total.values()} == {7 * 6 + 6 * 4}
    assert total[bits[-1]].tolist() == (counts["2"][bits[-1]] + counts["4"][bits[-1]]).tolist()


def test_pinned_layers_have_no_planes_to_count(tmp_path: Path) -> None:
    bs.save(prepared((4, 2), first_last=8), tmp_path / "model")
    counts = count_codes(read_info(tmp_path / "model"))
    assert {name: list(own) for name, own in counts.items()} == {"2": [4, 2], "4": [4, 2]}


def test_a_layer_at_another_width_than_the_only_one(tmp_path: Path) -> None:
    bs.save(prepared((4,), first_last=8), tmp_path / "model")
    counts = count_codes(read_info(tmp_path / "model"))
    assert {name: list(own) for name, own in counts.items()} == {"0": [8], "2": [4], "4": [4], "5": [8]}
    total = sum_counts(list(counts.values()))
    assert {bits: int(found.sum()) for bits, found in total.items()} == {8: 35 + 12, 4: 42 + 24}


def test_files_that_are_missing(tmp_path: Path) -> None:
    model = prepared((8, 4, 2))
    bs.save(model, tmp_path / "model")
    for path in (tmp_path / "model").glob("plane-7*"):
        path.unlink()
    counts = count_codes(read_info(tmp_path / "model"))
    assert list(counts["2"]) == [4, 2]
    assert counts["2"][2].tolist() == expected(model, "2", 8, 2)
    for path in (tmp_path / "model").glob("plane-*"):
        path.unlink()
    with pytest.raises(ConfigError, match="no width can be opened"):
        count_codes(read_info(tmp_path / "model"))


def test_layers_without_planes_are_not_counted(tmp_path: Path) -> None:
    bs.save(prepared((4, 2), shared=False), tmp_path / "model")
    assert count_codes(read_info(tmp_path / "model")) == {}
    assert sum_counts([]) == {}

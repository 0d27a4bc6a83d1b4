"""Times in turn, the description of the machine, the file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import bitswitch as bs
from bitswitch.bench import Machine, interleave, machine, read_bandwidth, write_json
from bitswitch.bench.networks import switching


def test_rounds_call_everything_in_turn() -> None:
    calls: list[str] = []
    found = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, repeat=2, burst=2)
    # Three rounds, the first for nothing; in each one call that is not measured and two that are.
    assert "".join(calls) == "aaabbb" * 3
    assert found.keys() == {"a", "b"}
    assert all(t.count == 4 and 0 < t.fastest <= t.median <= t.slowest for t in found.values())


def test_a_measurement_may_last_several_calls() -> None:
    calls: list[int] = []
    found = interleave({"a": lambda: calls.append(1)}, repeat=3, inner=10)
    assert len(calls) == 4 * 11
    assert found["a"].count == 3


def test_time_limit_leaves_three_rounds() -> None:
    assert interleave({"a": lambda: None}, repeat=50, seconds=0.0)["a"].count == 3


def test_time_limit_of_switching_leaves_three_rounds() -> None:
    x = torch.ones(2, 4)
    model = bs.prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)), (4, 2), example_inputs=x)
    bs.calibrate(model, [x])
    found = switching(bs.deploy(model), x, (4, 2), repeat=50, seconds=0.0)
    assert {bits: (t.switch.count, t.first_call.count) for bits, t in found.items()} == {4: (3, 3), 2: (3, 3)}


def test_machine_says_what_it_is() -> None:
    found = machine(bandwidth=False)
    assert found.threads >= 1
    assert found.cores >= 1
    assert found.processor in str(found)
    assert "GB/s" not in str(found)


def test_bandwidth_is_of_memory() -> None:
    assert all(0.01 < speed < 10_000 for speed in read_bandwidth(1 << 22, repeat=2).values())


def test_json_names_the_machine(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", Machine("Z80", 1, 2, "scalar", "2.6", {1: 20.5}), {"x": [1]})
    content = json.loads((tmp_path / "a" / "b.json").read_text("utf-8"))
    assert content["x"] == [1]
    assert content["machine"]["read_gb_per_s"] == {"1": 20.5}

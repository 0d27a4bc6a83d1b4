"""The comparison of joint with separate training runs; what it measures is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import joint_cost
from bitswitch.bench.timing import Timing


@pytest.mark.parametrize("distill", ["none", "float"])
def test_comparison(distill: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "cost.json"
    words = ["--recipe=digits", "--bits", "8", "4", "2", "--repeat=1", f"--distill={distill}", f"--json={report}"]
    joint_cost.main(words)
    steps = json.loads(report.read_text(encoding="utf-8"))["steps"]
    assert list(steps) == ["joint", "joint, rotating", "8 bits alone", "4 bits alone", "2 bits alone"]
    assert all(step["median_ms"] > 0 for step in steps.values())
    out = capsys.readouterr().out
    assert "all widths, each alone" in out
    assert f"distillation: {distill}" in out


def test_ratios_are_of_the_sum_of_single_widths() -> None:
    seconds = {"joint": 0.9, "joint, rotating": 0.5, "8 bits alone": 0.25, "2 bits alone": 0.75}
    rows = joint_cost.rows_of({name: Timing.of([value]) for name, value in seconds.items()})
    assert [(row[0], row[2]) for row in rows] == [
        ("joint", "0.900"),
        ("joint, rotating", "0.500"),
        ("8 bits alone", ""),
        ("2 bits alone", ""),
        ("all widths, each alone", "1"),
    ]

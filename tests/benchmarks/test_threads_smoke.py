"""Inference under switching: a short run of the benchmark, whose outputs are all exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import threads


@pytest.mark.parametrize("network", ["linear", "conv"])
def test_every_output_is_of_one_precision(network: str) -> None:
    result = threads.Trial(network, seconds=1.5, threads=8).run()
    assert result.errors == []
    assert result.wrong == 0
    assert result.calls >= 8
    assert result.switches > 0
    assert result.resident or result.growth is None


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # So short a run says nothing of memory.
    monkeypatch.setattr(threads, "ALLOWED_GROWTH", 1.0)
    words = ["--networks=linear", "--seconds=0.5", "--threads=2", f"--json={tmp_path / 'a'}"]
    assert threads.main(words) == 0
    assert "wrong outputs: 0" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "a").read_text("utf-8"))["threads"]
    assert found["passed"] is True


def test_wrong_outputs_are_found() -> None:
    trial = threads.Trial("linear", seconds=0.5, threads=1)
    trial.right[0][0] = trial.right[0][0] + 1
    result = trial.run()
    assert result.wrong > 0
    assert not result.passed

"""The benchmark of memory runs, and opening an engine brings nothing large with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import memory
from bitswitch.bench.memory import resident_bytes

pytestmark = pytest.mark.skipif(resident_bytes() is None, reason="this system does not tell")

# Code that runs for the first time, and Python objects. An import that opening needs would be several times that.
OVERHEAD = 24 << 20


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--weights 0.1 --features 128 --bits 2 --folder {tmp_path / 'a'} --json {tmp_path / 'b'}"
    monkeypatch.setattr("sys.argv", ["memory.py", *words.split()])
    memory.main()
    assert "6 layers of 128×128" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "b").read_text("utf-8"))["memory"]
    assert row["planes"] == 0.375
    assert 0 < row["bytes"]["opened"] <= row["bytes"]["running"] < OVERHEAD


def test_float_ends_are_written(tmp_path: Path) -> None:
    memory.write(tmp_path, 1, 128, "float")
    names = {path.name.partition("-")[0] for path in tmp_path.iterdir()}
    assert "plane" in names

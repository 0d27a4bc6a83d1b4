"""The benchmark of switching runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import switching


def test_switching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--network resnet18 --size 32 --features 64 --bits 8 2 --repeat 2 --json"
    monkeypatch.setattr("sys.argv", ["switching.py", *words.split(), str(tmp_path / "a")])
    switching.main()
    assert "resnet18, uncached" in capsys.readouterr().out
    figures = json.loads((tmp_path / "a").read_text("utf-8"))["switching"]
    assert figures.keys() == {"linear 64", "resnet18 cached", "resnet18 uncached"}
    assert figures["linear 64"]["2"]["switch"]["count"] == 20

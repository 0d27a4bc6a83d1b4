"""The decoding benchmark runs on a small matrix; what it measures is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import decode
from bitswitch import kernels

needs_kernels = pytest.mark.skipif(kernels.native is None, reason="needs the compiled kernels")


@needs_kernels
def test_decode(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "REST", 0.0)
    report = tmp_path / "decode.json"
    monkeypatch.setattr(
        "sys.argv", ["decode.py", "--shapes", "256x256", "--matrices=2", "--repeat=1", f"--json={report}"]
    )
    decode.main()
    table = capsys.readouterr().out
    assert "256×256" in table
    assert "torch int8" in table
    (result,) = json.loads(report.read_text(encoding="utf-8"))["shapes"]
    assert {"8 bits", "2 bits", "torch int8"} <= result["ms"].keys()
    assert all(value > 0 for value in [*result["ms"].values(), *result["read_gb_per_s"].values()])


@needs_kernels
def test_decode_with_groups() -> None:
    result = decode.measure((128, 256), [4], matrices=1, repeat=1, group_size=32, zero_point=128, peers=False)
    assert list(result["ms"]) == ["4 bits"]


def test_decode_says_that_kernels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "native", None)
    monkeypatch.setattr("sys.argv", ["decode.py"])
    with pytest.raises(SystemExit, match="without compiled kernels"):
        decode.main()

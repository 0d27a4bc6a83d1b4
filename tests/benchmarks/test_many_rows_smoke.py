"""The benchmark of many rows runs, and its contestants compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import many_rows
from bitswitch import kernels


def test_contestants_agree() -> None:
    layer = many_rows.Layer(48, 128)
    codes = torch.randint(0, 256, (20, 128), dtype=torch.uint8)
    ours = layer.ours(codes, 8)()
    assert torch.allclose(ours, layer.floats(codes)(), atol=1e-5)
    assert torch.allclose(layer.ours(codes, 6)(), ours, atol=0.1 * float(ours.abs().max()))
    if kernels.native is not None:
        assert torch.equal(layer.tiled(codes, 4)(), layer.ours(codes, 4)())
    # Without VNNI oneDNN adds pairs of products in 16 bits, and saturates; of codes up to 127 no pair is too large.
    small = codes // 2
    try:
        peer = layer.onednn(small)
    except (AttributeError, RuntimeError):
        pytest.skip("PyTorch without oneDNN")
    assert torch.allclose(layer.ours(small, 8)(), peer(), atol=1e-5)


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(many_rows, "PAUSE", 0.0)
    words = f"--shape 64x128 --rows 5 12 --bits 8 2 --repeat 1 --json {tmp_path / 'a'}"
    monkeypatch.setattr("sys.argv", ["many_rows.py", *words.split()])
    many_rows.main()
    assert "64×128, 12 rows" in capsys.readouterr().out
    first, _ = json.loads((tmp_path / "a").read_text("utf-8"))["many_rows"]
    assert {"8 bits", "2 bits", many_rows.FLOAT} <= first["times"].keys()

"""The side by side of whole networks runs, with the peers that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import networks


def test_without_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(networks, "versions", dict)
    monkeypatch.setattr(networks, "PAUSE", 0.0)
    words = "--networks resnet18 --batch 2 --bits 8 2 --size 32 --repeat 1 --json"
    monkeypatch.setattr("sys.argv", ["networks.py", *words.split(), str(tmp_path / "a")])
    networks.main()
    out = capsys.readouterr().out
    assert "peers: none but PyTorch" in out
    assert "PyTorch channels_last" in out
    assert (tmp_path / "a").exists()


@pytest.mark.filterwarnings("ignore")
def test_peers_run_the_network_that_they_were_given(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network = networks.float_network("resnet18", 64)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(x)
    for name, runner in networks.peers(network, x, tmp_path, floats=False).items():
        found = torch.as_tensor(next(iter(runner())) if name == networks.ONNX_RUNTIME else runner()[0])
        assert (found - expected).norm() < 0.2 * expected.norm(), name

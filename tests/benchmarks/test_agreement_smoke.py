"""The comparison of engines with networks in floats runs, and finds what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bitswitch as bs
from benchmarks import agreement
from bitswitch.checkpoint import read_info
from bitswitch.data import ImageSet, Loader, load_digits
from bitswitch.models import Architecture
from bitswitch.recipes import loaders


def checkpoint(folder: Path, name: str, shape: tuple[int, ...]) -> Path:
    torch.manual_seed(0)
    architecture = Architecture.of(name)
    images = torch.randn(16, *shape)
    model = bs.prepare(architecture.build(), bits=(8, 4), example_inputs=images)
    bs.calibrate(model, [images])
    bs.save(model, folder, architecture=architecture.to_json())
    return folder


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "a", "digits-cnn", (1, 8, 8))
    words = [str(folder), "--data=digits", "--images=40", "--batch-size=24", f"--json={tmp_path / 'b'}"]
    monkeypatch.setattr("sys.argv", ["agreement.py", *words])
    agreement.main()
    out = capsys.readouterr().out
    assert "40 images" in out
    assert "mixed 2" in out
    found = json.loads((tmp_path / "b").read_text("utf-8"))["agreement"]
    assert [result["precision"] for result in found[:2]] == ["8", "4"]
    assert all(result["images"] == 40 and result["flips"] < 0.05 for result in found)


def test_few_codes_of_a_residual_network_differ(tmp_path: Path) -> None:
    info = read_info(checkpoint(tmp_path / "a", "resnet20-cifar", (3, 8, 8)))
    batch = (torch.randn(4, 3, 8, 8), torch.arange(4))
    (result,) = agreement.measure(info, [batch], [batch], [bs.Precision.of(8)])
    quantized = [entry.name for entry in info.config.table.select("quantized")]
    assert list(result.codes) == quantized
    assert result.flips < 0.05
    assert max(result.largest.values()) < 32


def test_sorted_images_are_drawn_from_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_order(seed: int) -> tuple[ImageSet, ...]:
        return tuple(part.subset(part.labels.sort(stable=True).indices) for part in load_digits(seed))

    seen: list[torch.Tensor] = []

    def note(info: object, batches: Loader, code_batches: Loader, precisions: object) -> list[agreement.Agreement]:
        seen.extend((batches.labels, code_batches.labels))
        return []

    monkeypatch.setattr(loaders, "load_digits", in_order)
    monkeypatch.setattr(agreement, "CODE_IMAGES", 60)
    monkeypatch.setattr(agreement, "measure", note)
    monkeypatch.setattr(agreement, "show", lambda *_: None)
    folder = checkpoint(tmp_path / "a", "digits-cnn", (1, 8, 8))
    monkeypatch.setattr("sys.argv", ["agreement.py", str(folder), "--data=digits", "--images=100"])
    agreement.main()
    assert [len(labels) for labels in seen] == [100, 60]
    assert all(len(labels.unique()) == 10 for labels in seen)


def test_differences_are_counted() -> None:
    result = agreement.Agreement("8")
    scores = torch.eye(3)
    agreement.compare_predictions(result, (scores, scores[[0, 2, 1]]), torch.arange(3))
    assert (result.right, result.different, result.images) == ([3, 1], 2, 3)

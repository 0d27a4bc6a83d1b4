"""The command that measures, on networks that take milliseconds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import bitswitch as bs
from bitswitch.bench import memory
from bitswitch.cli import main
from bitswitch.models import Architecture

QUICK = ["--repeat", "3", "--seconds", "0.1", "--batch", "1", "3"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "checkpoint"
    architecture = Architecture.of("digits-cnn", width=4)
    images = torch.rand(4, 1, 8, 8)
    model = bs.prepare(architecture.build(), bits=(8, 4), example_inputs=images)
    bs.calibrate(model, [images])
    bs.save(model, folder, architecture=architecture.to_json())
    return folder


def lines(out: str, name: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line.strip().startswith(name)]


def test_a_checkpoint(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    words = ["bench", str(checkpoint), *QUICK, "--training", "--training-batch", "4", "--threads", "1"]
    assert main([*words, "--json", str(tmp_path / "a.json")]) == 0
    assert torch.get_num_threads() == before
    out = capsys.readouterr().out
    assert "1 threads" in out.splitlines()[0]
    assert "digits-cnn, inputs of 1×8×8, medians; the engine runs it as a graph: " in out
    # Two batch sizes with a ratio each; switching; a training step.
    assert len(lines(out, "float32")) == 2
    assert len(lines(out, "simulated")) == 1
    assert len(lines(out, "8 bits")) == len(lines(out, "4 bits")) == 3
    assert "cached, ms" in out
    figures = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert figures["machine"]["threads"] == 1
    assert figures["latency"]["3"].keys() == {"float32", "simulated", "8 bits", "4 bits"}
    assert figures["file_bytes"]["4"] < figures["file_bytes"]["8"]
    assert figures["switching"]["uncached"]["4"]["switch"]["count"] == 3
    assert figures["training"]["batch"] == 4
    if figures["resident_bytes"]:
        assert figures["resident_bytes"]["8"]["running"] > 0


def test_memory_is_measured_with_the_same_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def child(*_: Any, input: str, **__: Any) -> subprocess.CompletedProcess[str]:
        asked.append(json.loads(input)["threads"])
        return subprocess.CompletedProcess([], 0, '{"opened": 1, "running": 2}', "")

    asked: list[int] = []
    monkeypatch.setattr(memory.subprocess, "run", child)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 1)
    words = ["--bits", "4", "--batch", "1", "--no-float-network", "--no-simulated", "--threads", "3"]
    assert main(["bench", "digits-cnn", *QUICK[:4], *words]) == 0
    assert asked == [3]


def test_an_architecture_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "resnet20-cifar",
        "--bits",
        "4",
        "--image-size",
        "8",
        "--no-memory",
        "--no-float-network",
        "--no-simulated",
    ]
    assert main(["bench", *words, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "resnet20-cifar, inputs of 3×8×8" in out
    assert len(lines(out, "4 bits")) == 1
    assert "switch to" not in out
    assert "float32" not in out
    assert "simulated" not in out


def test_inputs_that_stay_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    architecture, images = Architecture.of("digits-cnn", width=4), torch.rand(4, 1, 8, 8)
    model = bs.prepare(architecture.build(), bits=(8, 4), example_inputs=images, activations=False)
    bs.calibrate(model, [images])
    bs.save(model, tmp_path / "a", architecture=architecture.to_json())
    words = ["bench", str(tmp_path / "a"), *QUICK, "--no-memory"]
    assert main(words) == 1
    assert "stay float" in capsys.readouterr().err
    assert main([*words, "--dynamic"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits-cnn", "--batch", "0"], "--batch must be at least 1"),
        (["digits-cnn", "--seconds", "nan"], "--seconds must be at least 0; got nan"),
        (["digits-cnn", "--json", "."], "--json is a file; . is a folder"),
        (["digits-cnn", "--input-shape", "3", "8", "8"], "digits-cnn does not take inputs of 3×8×8"),
        (["digits-cnn", "--image-size", "8", "--input-shape", "1", "8", "8"], "either --image-size or --input-shape"),
        (["digits-cnm"], "digits-cnm"),
        (["./nowhere"], "is not a checkpoint folder"),
    ],
)
def test_what_cannot_be_measured(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 1
    assert message in capsys.readouterr().err


def test_widths_that_a_checkpoint_lacks(checkpoint: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "digits-a"
    for given, folder, there in ((checkpoint, checkpoint, "8, 4"), (run, run / "checkpoint", "8, 4, 2")):
        assert main(["bench", str(given), "--bits", "6"]) == 1
        assert f"{folder}: 6 bits cannot be opened; widths that can: {there}" in capsys.readouterr().err

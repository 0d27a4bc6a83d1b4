"""A job on two processes: sharded training and evaluation, one writer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitswitch.recipes.phases import float_accuracy
from bitswitch.recipes.trained import Trained, open_images
from bitswitch.training.run import read_json
from bitswitch.training.run_metrics import read_metrics

OPTIONS = [
    *("train", "digits", "--name", "two", "--model.options", "width", "4", "--data.max-train", "64"),
    *("--data.max-eval", "41", "--start.epochs", "1", "--start.batch-size", "32", "--prepare.bits", "8", "2"),
    *("--prepare.calibration-batches", "1", "--joint.epochs", "1", "--joint.batch-size", "32"),
]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launch(runs: Path, world_size: int) -> list[tuple[int, str, str]]:
    """Start what torchrun would start; return exit code, output and errors of each."""
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bitswitch", *OPTIONS, "--runs", str(runs)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_share_a_job(tmp_path: Path) -> None:
    first, second = launch(tmp_path, 2)
    assert first[0] == 0, first[2]
    assert second[0] == 0, second[2]
    assert "report:" in first[1]
    assert second[1] == ""
    folder = tmp_path / "digits-two"
    assert read_json(folder / "config.json")["processes"] == 2
    results = read_json(folder / "results.json")
    # Every one of the 41 images was counted once.
    for value in [results["float_accuracy"], *results["accuracy"].values()]:
        assert value * 41 == pytest.approx(round(value * 41))
    last = [row.accuracy for row in read_metrics(folder / "metrics.csv") if row.split == "held-out"][-2:]
    assert last == list(results["accuracy"].values())
    trained = Trained.open(folder)
    images = open_images(trained, trained.recipe.data, 8, torch.device("cpu")).held_out()  # pyright: ignore[reportOptionalMemberAccess]
    assert float_accuracy(trained.float_network(), images, torch.device("cpu")) == results["float_accuracy"]

"""A frontier that is killed goes on without measuring again, and one over two processes finds the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitswitch.cli import main
from tests.cli.test_mixed_commands import FEW
from tests.recipes.test_processes import free_port

WORKER = Path(__file__).with_name("_frontier_worker.py")
FILES = ("frontier.json", "frontier.csv", "frontier.png", "scores_search.json", "scores_unseen.json")


@pytest.fixture(scope="module")
def sensitivity(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    words = ["--images", "32", "--batch-size", "16", "--max-probes", "2", "--output", str(folder)]
    assert main(["sensitivity", str(runs / "digits-a"), *words]) == 0
    return folder / "sensitivity.json"


def words(runs: Path, sensitivity: Path, output: Path) -> list[str]:
    # Parts of different sizes, so that a line of the log tells which one a measurement was made on.
    options = ["--search-share", "0.4", "--sensitivity", str(sensitivity), "--output", str(output)]
    return ["frontier", str(runs / "digits-a"), *FEW, *options]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_frontiers_measure_nothing_twice(runs: Path, sensitivity: Path, tmp_path: Path) -> None:
    logs = {}
    for name, moments in (("whole", ""), ("killed", "3,6,9")):
        log = tmp_path / f"{name}.log"
        command = [sys.executable, str(WORKER), str(log), moments, *words(runs, sensitivity, tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        logs[name] = log.read_text(encoding="utf-8").splitlines()
    assert len(set(logs["whole"])) == len(logs["whole"]) > 20
    assert set(logs["killed"]) == set(logs["whole"])
    # Each kill loses the one measurement that had not been written.
    assert len(logs["killed"]) == len(logs["whole"]) + 3
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_find_the_same(runs: Path, sensitivity: Path, tmp_path: Path) -> None:
    assert main(words(runs, sensitivity, tmp_path / "one")) == 0
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bitswitch", *words(runs, sensitivity, tmp_path / "two")],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "best of 4 random" in outputs[0][0]
    assert outputs[1][0] == ""
    for name in FILES:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name

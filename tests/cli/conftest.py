"""A tiny run that the tests of several commands start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch.cli import main

TINY = [
    *("train", "digits", "--model.options", "width", "4", "--data.max-train", "64", "--data.max-eval", "40"),
    *("--start.epochs", "1", "--start.batch-size", "32", "--prepare.bits", "8", "4", "2"),
    *("--prepare.calibration-batches", "1", "--joint.epochs", "1", "--joint.batch-size", "32"),
]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    assert main([*TINY, "--runs", str(folder), "--name", "a"]) == 0
    return folder


@pytest.fixture
def checkpoint(runs: Path) -> Path:
    return runs / "digits-a" / "checkpoint"

"""A run that is killed continues, and leaves the bytes of one that was not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from bitswitch.recipes import Recipe
from bitswitch.recipes.convert import to_json
from bitswitch.recipes.stored import CHECKPOINT_FOLDER

WORKER = Path(__file__).with_name("_kill_worker.py")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def run(recipe: Recipe, folder: Path, moments: list[int]) -> int:
    config = folder.with_suffix(".json")
    config.write_text(json.dumps(to_json(recipe)))
    command = [sys.executable, str(WORKER), str(config), str(folder), *map(str, moments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def contents(folder: Path) -> dict[str, bytes]:
    names = ["config.json", "metrics.csv", "results.json", "report.html"]
    paths = [folder / name for name in names] + sorted((folder / CHECKPOINT_FOLDER).iterdir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_killed_runs_end_in_the_same_bytes(tiny: Recipe, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    operations = run(tiny, whole, [])
    draw = random.Random(0)
    # Each session does what is left, so later ones are shorter: early moments always come.
    moments = [draw.randrange(1, 8), draw.randrange(operations // 4, operations // 2), draw.randrange(4, 40)]
    run(tiny, killed, moments)
    assert contents(killed) == contents(whole)
    sessions = json.loads((killed / "timing.json").read_text())["sessions"]
    assert len(sessions) >= 2

"""Engines give the same outputs at every level of the kernels that BITSWITCH_KERNELS can choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bitswitch as bs
from bitswitch import kernels
from tests.instruction_sets import available
from tests.runtime import _networks

_CHILD = """
import sys, torch
import bitswitch as bs
from bitswitch.kernels import instruction_set
from tests.runtime import _networks
engine = bs.deploy(sys.argv[1], into=_networks.meta())
outputs = [engine(_networks.images(), precision=bits) for bits in _networks.BITS]
torch.save([instruction_set(), *outputs], sys.argv[2])
"""


def run(level: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, kernels.VARIABLE: level, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    words = [sys.executable, "-W", "error", "-c", *arguments]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels") / "checkpoint"
    bs.save(_networks.mixed(first_last=8), folder)
    return folder


@pytest.mark.parametrize("level", ["reference", *available()])
def test_outputs_are_the_same(level: str, checkpoint: Path, tmp_path: Path) -> None:
    child = run(level, _CHILD, str(checkpoint), str(tmp_path / "outputs"))
    assert child.returncode == 0, child.stderr
    found, *outputs = torch.load(tmp_path / "outputs")
    assert found == level
    engine = bs.deploy(checkpoint, into=_networks.meta())
    for bits, output in zip(_networks.BITS, outputs, strict=True):
        assert torch.equal(output, engine(_networks.images(), precision=bits)), bits


def test_a_level_that_is_not_there() -> None:
    child = run("sse", "import bitswitch")
    assert child.returncode != 0
    assert "BITSWITCH_KERNELS must be one of auto, reference, scalar" in child.stderr

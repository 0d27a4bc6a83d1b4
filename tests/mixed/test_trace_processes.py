"""Traces over two processes, each with batches of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bitswitch.mixed import Sensitivity

ROOT = Path(__file__).parents[2]


def test_two_processes_agree_and_estimate_the_same_trace(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.mixed._trace_worker"]
    arguments = [[str(rank), str(tmp_path / "store"), str(tmp_path)] for rank in range(2)]
    workers = [subprocess.Popen([*command, *words], cwd=ROOT) for words in arguments]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second, alone = (Sensitivity.load(tmp_path / f"{name}.json") for name in ("0", "1", "alone0"))
    assert first == second
    assert first.num_examples == 32
    for name, trace in first.layers.items():
        assert trace.error <= 0.1 * trace.value
        assert abs(trace.value - alone[name]) <= 4 * (trace.error**2 + alone.layers[name].error ** 2) ** 0.5

"""The comparison of trace estimators runs on a small network; Hutch++ is right where it must be exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import trace
from bitswitch.recipes import get_recipe
from bitswitch.recipes.job import run_recipe


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace.importlib.util, "find_spec", lambda name: None)
    recipe = get_recipe("digits").replace(
        model={"options": {"width": 4}},
        data={"max_train": 64, "max_eval": 40},
        start={"epochs": 1, "batch_size": 32},
        prepare={"bits": (8, 2), "calibration_batches": 1},
        joint={"epochs": 0, "batch_size": 32},
    )
    run_recipe(recipe, tmp_path / "run")
    report = tmp_path / "trace.json"
    trace.main([str(tmp_path / "run"), "--images=64", "--seconds=0.01", "--repeat=2", f"--json={report}"])
    out = capsys.readouterr().out
    assert "PyHessian is not installed" in out
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["pyhessian"] is None
    assert len(found["estimators"]) == 5
    for row in found["estimators"].values():
        assert set(row["traces"]) == {"stem", "block.conv1", "block.conv2", "down", "depthwise", "pointwise", "fc"}
        assert row["count"] >= 2


def test_hutch_plus_plus_is_exact_on_low_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(40, 3, generator=generator)
    matrix = factor @ factor.T
    found = trace.hutch_plus_plus(lambda v: matrix @ v, 40, 12, generator)
    assert found == pytest.approx(float(matrix.trace()), rel=1e-4)

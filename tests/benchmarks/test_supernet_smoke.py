"""The figures of SuperNets, on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bitswitch as bs
from benchmarks import supernet
from bitswitch.cli import main
from bitswitch.errors import ConfigError
from bitswitch.recipes import get_recipe
from bitswitch.recipes.job import run_recipe

RECIPE = get_recipe("digits").replace(
    model={"options": {"width": 4}},
    data={"validation": 100, "max_train": 300},
    start={"epochs": 1, "batch_size": 32},
    prepare={"bits": (4, 3, 2), "calibration_batches": 1, "batch_norm": "transitional"},
    joint={"epochs": 1, "batch_size": 32, "sampler": "hasb"},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits-hasb"
    run_recipe(RECIPE, folder)
    return folder


@pytest.mark.parametrize("reestimate", ["0", "2"])
def test_all_figures_are_there(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reestimate: str) -> None:
    words = [str(run), "--averages", "2.5", "3", "--random", "5", "--rounds", "1", "--neighbours", "3"]
    words += ["--reestimate", reestimate, "--luckiest"]
    words += ["--results", str(tmp_path / "scores"), "--json", str(tmp_path / "new" / "out.json")]
    supernet.main(words)
    shown = tables(capsys)
    (result,) = json.loads((tmp_path / "new" / "out.json").read_text())
    assert list(result["uniform"]) == ["4", "3", "2"]
    assert [row["average_bits"] for row in result["budgets"]] == [2.5, 3]
    assert "uniform" in result["budgets"][1]["against"]
    assert "uniform" not in result["budgets"][0]["against"]
    # What is best by its images cannot be worse than what another choice finds there.
    for row in result["budgets"]:
        best, luckiest = (row["against"][name]["difference"] for name in ("best random", "luckiest random"))
        assert luckiest <= best + 1e-9
    assert set(result["correlations"]) == {"perturbation", "weighted-bits", "average bits"}
    assert "| 2.5 |" in shown
    before = {path.name: path.read_bytes() for path in (tmp_path / "scores" / run.name).iterdir()}
    supernet.main(words)
    assert tables(capsys) == shown
    assert {path.name: path.read_bytes() for path in (tmp_path / "scores" / run.name).iterdir()} == before
    supernet.main([word for word in words if word != "--luckiest"])
    (shorter,) = json.loads((tmp_path / "new" / "out.json").read_text())
    assert shorter["correlations"] == result["correlations"]
    for row, longer in zip(shorter["budgets"], result["budgets"], strict=True):
        del longer["against"]["luckiest random"]
        assert row == longer


def test_input_errors_are_one_proxy_more(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed"
    assert main(["sensitivity", str(run), "--output", str(path), "--inputs", "--images", "64"]) == 0
    words = [str(run), "--sensitivity", str(path / "sensitivity.json"), "--averages", "3", "--random", "8"]
    supernet.main([*words, "--rounds", "0", "--results", str(tmp_path), "--json", str(tmp_path / "out.json")])
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert set(result["correlations"]) == {"perturbation", "with input errors", "weighted-bits", "average bits"}


def tables(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed but the lines of progress, which say how much was measured anew."""
    return capsys.readouterr().out.partition("###")[2]


def test_intervals() -> None:
    ours = torch.tensor([True] * 60 + [False] * 40)
    theirs = torch.tensor([True] * 50 + [False] * 50)
    found = supernet.Comparison.of(ours, theirs)
    assert found.difference == pytest.approx(10)
    # 10 of 100 images differ, all in one direction.
    assert found.high - found.difference == pytest.approx(1.96 * (0.1 * 0.9 / 99) ** 0.5 * 100)
    assert supernet.Comparison.of(ours, ours) == supernet.Comparison(0, 0, 0)


def test_a_limit_draws_from_all_images(run: Path, tmp_path: Path) -> None:
    judge = supernet.Judge(run, supernet.Settings(limit=60), tmp_path)
    for part, loader in judge.parts.items():
        assert len(loader.labels.unique()) == 10
        assert len(judge.right(bs.Precision.of(4), part)) == 60


def test_without_validation_images(tmp_path: Path) -> None:
    recipe = RECIPE.replace(data={"validation": None}, joint={"epochs": 0})
    run_recipe(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="was trained on all images"):
        supernet.main([str(tmp_path / "run"), "--results", str(tmp_path / "scores")])

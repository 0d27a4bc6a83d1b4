"""SuperNet training as a recipe: where it starts, what it draws, and that it continues exactly."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from bitswitch._files import read_state
from bitswitch.checkpoint import load
from bitswitch.errors import ConfigError
from bitswitch.layers import iter_layers
from bitswitch.mixed import Sensitivity
from bitswitch.models import build_model
from bitswitch.recipes import Recipe
from bitswitch.recipes.config import DataConfig, RunConfig
from bitswitch.recipes.job import CHECKPOINT_FOLDER, Results, run_recipe
from bitswitch.recipes.loaders import RecipeData
from bitswitch.recipes.start import FLOAT_STATE
from bitswitch.recipes.supernet import SENSITIVITY_NAME
from bitswitch.training import JointTrainer
from bitswitch.training.run_metrics import read_metrics
from bitswitch.training.steps import StepResult
from tests.recipes.test_resume import contents, run

Finished = tuple[Path, Results]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def supernet(recipe: Recipe, folder: Path, **joint: object) -> Recipe:
    return recipe.replace(start={"checkpoint": str(folder)}, joint={"epochs": 1, "sampler": "hasb", **joint})


def first_accuracy(folder: Path) -> dict[int, float | None]:
    rows = read_metrics(folder / "metrics.csv")
    return {row.bits: row.accuracy for row in rows if (row.phase, row.split, row.epoch) == ("joint", "held-out", 0)}


def test_a_run_starts_where_the_earlier_one_ended(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    results = run_recipe(supernet(tiny, finished[0], epochs=0), tmp_path / "run")
    assert results.accuracy == finished[1].accuracy
    assert results.float_accuracy == finished[1].float_accuracy
    ours, theirs = (read_state(folder)[0] for folder in (tmp_path / "run", finished[0]))
    for name, tensor in theirs.items():
        if name.startswith("model/"):
            assert torch.equal(ours[name], tensor), name


def test_a_checkpoint_folder_will_do(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    recipe = supernet(tiny, finished[0] / CHECKPOINT_FOLDER, sampler="uniform", distill="float")
    run_recipe(recipe, tmp_path / "run")
    assert first_accuracy(tmp_path / "run") == finished[1].accuracy
    assert not (tmp_path / "run" / SENSITIVITY_NAME).exists()


def test_pairs_of_widths_start_as_their_own_width(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    recipe = supernet(tiny, finished[0], sampler="uniform").replace(prepare={"batch_norm": "transitional"})
    run_recipe(recipe, tmp_path / "run")
    assert first_accuracy(tmp_path / "run") == finished[1].accuracy
    # A SuperNet with pairs is what the next one with pairs starts from; one without cannot.
    again = recipe.replace(start={"checkpoint": str(tmp_path / "run")}, joint={"epochs": 0})
    run_recipe(again, tmp_path / "again")
    ours, theirs = (read_state(tmp_path / name)[0] for name in ("run", "again"))
    assert any("-" in name.partition(".norms.")[2] for name in ours)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items() if name.startswith("model/"))
    with pytest.raises(ConfigError, match="has prepare.batch_norm='transitional'; this recipe says 'per-width'"):
        run_recipe(again.replace(prepare={"batch_norm": "per-width"}), tmp_path / "back")


def test_layers_draw_more_often_as_epochs_pass(
    tiny: Recipe, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    step = JointTrainer.step

    def watched(self: JointTrainer, batch: Any) -> StepResult:
        result = step(self, batch)
        drawn.append(sum(b != bits for bits, width in result.widths.items() for _, b in width.precision.layers))
        return result

    monkeypatch.setattr(JointTrainer, "step", watched)
    run_recipe(supernet(tiny, finished[0], epochs=4, sigma=0.8), tmp_path / "run")
    per_epoch = [sum(drawn[i : i + 3]) for i in range(0, len(drawn), 3)]
    assert len(per_epoch) == 4
    assert sum(per_epoch[:2]) < sum(per_epoch[2:])


@needs_fork
def test_killed_runs_end_in_the_same_bytes(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    recipe = supernet(tiny, finished[0], distill="self", epochs=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    operations = run(recipe, whole, [])
    draw = random.Random(1)
    run(
        recipe, killed, [draw.randrange(1, 12), draw.randrange(operations // 4, operations // 2), draw.randrange(4, 30)]
    )
    assert contents(killed) == contents(whole)


def test_the_sensitivity_may_come_from_a_file(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    network = build_model("digits-cnn", width=4)
    quantized = [name for name, _ in iter_layers(load(finished[0] / CHECKPOINT_FOLDER, into=network))]
    assert quantized
    run_recipe(supernet(tiny, finished[0]), tmp_path / "first")
    path = tmp_path / "first" / SENSITIVITY_NAME
    assert set(Sensitivity.load(path)) >= set(quantized)
    run_recipe(supernet(tiny, finished[0], sensitivity=str(path)), tmp_path / "second")
    assert (tmp_path / "second" / SENSITIVITY_NAME).read_bytes() == path.read_bytes()
    with pytest.raises(ConfigError, match="cannot be read"):
        run_recipe(supernet(tiny, finished[0], sensitivity=str(tmp_path / "none")), tmp_path / "third")


def test_few_training_images_are_enough_for_the_sensitivity(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    few = supernet(tiny, finished[0], batch_size=10).replace(data={"max_train": 20})
    run_recipe(few, tmp_path / "run")
    assert Sensitivity.load(tmp_path / "run" / SENSITIVITY_NAME).num_examples == 20


def test_an_earlier_network_that_does_not_fit(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    other = supernet(tiny, finished[0]).replace(prepare={"bits": (4, 3, 2)})
    with pytest.raises(ConfigError, match=r"has prepare.bits=\(8, 4, 2\); this recipe says \(4, 3, 2\)"):
        run_recipe(other, tmp_path / "bits")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for path in finished[0].iterdir():
        if path.name.startswith(("config", "state", FLOAT_STATE)):
            (unfinished / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="is not finished"):
        run_recipe(supernet(tiny, unfinished), tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot be used"):
        run_recipe(supernet(tiny, tmp_path / "nothing"), tmp_path / "run2")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("joint", {"sigma": 1.5}, "joint.sigma must be at most 1"),
        ("joint", {"sigma": float("nan")}, "joint.sigma"),
        ("joint", {"sensitivity": "traces.json"}, "joint.sensitivity is for joint.sampler=hasb"),
        ("data", {"kind": "folder", "validation": 5}, "data.validation is not for data.kind=folder"),
        ("data", {"validation": 0}, "data.validation must be at least 1"),
    ],
)
def test_values_out_of_range(tiny: Recipe, section: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.replace(**{section: values}).check()


def test_validation_images_are_not_trained_on() -> None:
    device = torch.device("cpu")

    def images(config: DataConfig) -> list[set[bytes]]:
        data = RecipeData(config, RunConfig(eval_batch_size=100), device)
        loaders = data.calibration(1), data.validation(), data.held_out()
        return [{x.numpy().tobytes() for batch, _ in loader for x in batch} for loader in loaders]

    training, validation, held_out = images(DataConfig("digits", validation=200))
    assert len(training) + len(validation) + len(held_out) == 1797
    assert abs(len(validation) - 200) <= 5
    assert not training & validation
    assert not held_out & validation
    assert images(DataConfig("digits", validation=200))[1] == validation
    assert images(DataConfig("digits", validation=200, max_train=50))[1] == validation
    for count, message in ((2000, "leaves none"), (1436, "no image for training"), (3, "no image for validation")):
        with pytest.raises(ConfigError, match=message):
            RecipeData(DataConfig("digits", validation=count), RunConfig(), device).training(8, seed=0)
    with pytest.raises(ConfigError, match="give data.validation"):
        RecipeData(DataConfig("digits"), RunConfig(), device).validation()


def test_a_run_of_an_earlier_version_continues(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    results = run_recipe(tiny.replace(joint={"epochs": 0}), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["recipe"]["joint"]["sampler"]
    (folder / "config.json").write_text(json.dumps(config))
    assert run_recipe(tiny.replace(joint={"epochs": 0}), folder) == results
    with pytest.raises(ConfigError, match="recipe.joint.sampler='off', this command says 'uniform'"):
        run_recipe(tiny.replace(joint={"epochs": 0, "sampler": "uniform"}), folder)

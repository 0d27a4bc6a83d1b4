"""A whole job on a few images: what it leaves behind, and that it is not done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import bitswitch as bs
from bitswitch.checkpoint import read_info
from bitswitch.errors import BitswitchError, ConfigError
from bitswitch.models import Architecture
from bitswitch.recipes import Recipe
from bitswitch.recipes.job import CHECKPOINT_FOLDER, Results, run_recipe
from bitswitch.recipes.loaders import RecipeData
from bitswitch.recipes.stored import open_checkpoint, stored_recipe
from bitswitch.training.run import read_json
from bitswitch.training.run_loop import Observer, Phase
from bitswitch.training.run_metrics import read_metrics

Finished = tuple[Path, Results]


class Forbidden(Observer):
    def begin(self, phase: Phase, step: int) -> None:
        raise AssertionError("a finished run was trained again")


def test_what_was_trained_is_what_was_stored(finished: Finished) -> None:
    folder, results = finished
    last = [row for row in read_metrics(folder / "metrics.csv") if (row.phase, row.split) == ("joint", "held-out")]
    assert {row.bits: row.accuracy for row in last[-3:]} == results.accuracy
    assert [row.epoch for row in last] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_metrics_of_every_width_and_step(finished: Finished) -> None:
    rows = [r for r in read_metrics(finished[0] / "metrics.csv") if (r.phase, r.split) == ("joint", "train")]
    assert [(row.step, row.bits) for row in rows] == [(step, bits) for step in range(1, 7) for bits in (8, 4, 2)]
    for row in rows:
        assert row.scale_gradient is not None
        assert row.scaled_gradient is not None
        assert row.lr is not None
        assert row.scale_lr is not None
        assert row.scaled_gradient == pytest.approx(row.scale_gradient * row.scale_lr / row.lr)


def test_files_of_a_finished_run(finished: Finished) -> None:
    folder, results = finished
    for name in ("config.json", "metrics.csv", "results.json", "timing.json", "log.txt", "report.html", "state.json"):
        assert (folder / name).is_file(), name
    assert {path.name for path in (folder / "plots").iterdir()} == {
        "accuracy_by_width.png",
        "code_histograms.png",
        "learning_curves.png",
        "scale_gradients.png",
    }
    info = read_info(folder / CHECKPOINT_FOLDER)
    assert info.bytes_at == results.bytes_at
    assert not list(folder.rglob("*.tmp"))


def test_a_checkpoint_needs_nothing_but_its_folder(finished: Finished, tiny: Recipe) -> None:
    info = read_info(finished[0] / CHECKPOINT_FOLDER)
    assert info.config.architecture == Architecture.of("digits-cnn", width=4).to_json()
    model = open_checkpoint(info, 4)
    assert bs.summary(model).bits == (8, 4, 2) if hasattr(bs, "summary") else True
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert stored_recipe(info.folder) == tiny


def test_held_out_images_are_for_the_final_figures(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(data={"validation": 97})
    results = run_recipe(recipe, tmp_path / "run")
    count = RecipeData(recipe.data, recipe.run, torch.device("cpu")).validation().num_samples
    assert count % 40
    evaluated = [row for row in read_metrics(tmp_path / "run/metrics.csv") if row.is_evaluation]
    assert {(row.phase, row.split) for row in evaluated} == {("float", "validation"), ("joint", "validation")}

    def is_share_of(value: float | None, count: int) -> bool:
        return value is not None and value * count == pytest.approx(round(value * count), abs=1e-9)

    assert all(is_share_of(row.accuracy, count) for row in evaluated)
    assert all(is_share_of(value, 40) for value in (results.float_accuracy, *results.accuracy.values()))


def test_times_of_training_steps(finished: Finished) -> None:
    (session,) = read_json(finished[0] / "timing.json")["sessions"]
    assert {name: phase["steps"] for name, phase in session["training"].items()} == {"float": 3, "joint": 6}
    assert 0 < sum(phase["seconds"] for phase in session["training"].values()) < session["seconds"]
    assert "PyTorch" in session["machine"]


def test_a_finished_run_is_only_read(finished: Finished, tiny: Recipe) -> None:
    folder, results = finished
    before = (folder / "metrics.csv").read_bytes()
    assert run_recipe(tiny, folder, Forbidden()) == results
    assert (folder / "metrics.csv").read_bytes() == before


def test_another_configuration_is_refused_by_name(finished: Finished, tiny: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"was started with recipe.joint.lr=0.002, this command says 0.1"):
        run_recipe(tiny.replace(joint={"lr": 0.1}), finished[0])


def test_job_keeps_the_determinism_of_its_caller(finished: Finished) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]


def test_sgd_with_a_rate_for_the_scales(tiny: Recipe, tmp_path: Path) -> None:
    joint = {"epochs": 1, "optimizer": "sgd", "lr": 0.02, "scale_lr": 1e-3, "alrs": "off", "schedule": "constant"}
    run_recipe(tiny.replace(joint=joint), tmp_path / "run")
    rows = [r for r in read_metrics(tmp_path / "run" / "metrics.csv") if (r.phase, r.split) == ("joint", "train")]
    assert {(row.lr, row.scale_lr) for row in rows} == {(0.02, 1e-3)}
    assert '"optimizer":"SGD"' in (tmp_path / "run" / "state.json").read_text("utf-8")


@pytest.mark.parametrize("distill", ["float", "self"])
def test_other_options(tiny: Recipe, tmp_path: Path, distill: str) -> None:
    recipe = tiny.replace(
        start={"optimizer": "sgd", "lr": 0.01},
        joint={"epochs": 1, "distill": distill, "clip_grad_norm": 1.0, "label_smoothing": 0.1, "moments": "separate"},
        run={"autocast": "bfloat16", "channels_last": True},
    )
    results = run_recipe(recipe, tmp_path / "run")
    assert set(results.accuracy) == {8, 4, 2}


def test_start_from_a_file(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    stored = json.loads((finished[0] / "float-model.json").read_text())
    weights = finished[0] / stored["data"]["file"]
    recipe = tiny.replace(start={"epochs": 0, "weights": str(weights)}, joint={"epochs": 0})
    results = run_recipe(recipe, tmp_path / "run")
    assert results.float_accuracy == finished[1].float_accuracy


def test_data_folder_must_be_named(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITSWITCH_DATA", raising=False)
    with pytest.raises(ConfigError, match="BITSWITCH_DATA"):
        run_recipe(tiny.replace(data={"kind": "cifar10"}), tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("joint", {"batch_size": 4096}, "a batch of 4096"),
        ("joint", {"sampler": "hasb", "sensitivity": "nowhere.json"}, "nowhere.json"),
        ("prepare", {"skip": ("nowhere",)}, "nowhere"),
        ("start", {"checkpoint": "nowhere"}, "nowhere"),
    ],
)
def test_what_joint_training_refuses_is_known_before_the_float_network_is_trained(
    tiny: Recipe, tmp_path: Path, section: str, values: dict[str, object], message: str
) -> None:
    with pytest.raises(BitswitchError, match=message):
        run_recipe(tiny.replace(**{section: values}), tmp_path / "run", Forbidden())
    # Nothing was done, so the folder is free for the corrected recipe.
    run_recipe(tiny.replace(joint={"epochs": 0}, start={"epochs": 0}), tmp_path / "run")
    with pytest.raises(ConfigError, match="was started with"):
        run_recipe(tiny.replace(joint={"epochs": 1}, start={"epochs": 0}), tmp_path / "run")


def test_a_whole_number_is_the_float_that_it_stands_for(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(joint={"epochs": 0, "temperature": 4, "distill": "self"}, start={"epochs": 0})
    assert run_recipe(recipe, tmp_path / "run") == run_recipe(recipe, tmp_path / "run")


def test_start_from_a_run_without_its_float_weights(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "earlier"
    shutil.copytree(finished[0], folder)
    for path in (*folder.glob("state*"), *folder.glob("float-model*")):
        path.unlink()
    recipe = tiny.replace(start={"checkpoint": str(folder), "epochs": 0}, joint={"epochs": 0})
    assert run_recipe(recipe, tmp_path / "run").accuracy == finished[1].accuracy


def test_checkpoints_of_other_codes_are_no_start(tiny: Recipe, finished: Finished, tmp_path: Path) -> None:
    # Without a recipe beside it, so that only the checkpoint itself can tell.
    folder = tmp_path / "earlier"
    shutil.copytree(finished[0] / "checkpoint", folder, ignore=shutil.ignore_patterns("recipe.json"))
    recipe = tiny.replace(start={"checkpoint": str(folder), "epochs": 0}, joint={"epochs": 0})
    for prepare, message in (
        ({"midrise": (2,)}, r"has midrise=\(\); this recipe says \(2,\)"),
        ({"activation_bits": (8, 4, 4)}, r"has activation_bits=\(\); this recipe says \(\(2, 4\),\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_recipe(recipe.replace(prepare=prepare), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"activation-bits: 2 widths of inputs for 3 of weights"):
        run_recipe(tiny.replace(prepare={"activation_bits": (8, 4)}), tmp_path / "run")


def test_wider_inputs_and_midrise_weights_in_a_recipe(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(prepare={"activation_bits": (8, 4, 4), "midrise": (2,)})
    results = run_recipe(recipe, tmp_path / "run")
    assert results == run_recipe(recipe, tmp_path / "run")
    again = recipe.replace(start={"checkpoint": str(tmp_path / "run"), "epochs": 0}, joint={"epochs": 0})
    assert run_recipe(again, tmp_path / "again").accuracy == results.accuracy
    options = read_info(tmp_path / "run" / "checkpoint").config.options
    assert (options.midrise, options.activation_bits) == ((2,), ((2, 4),))


def test_no_float_training_takes_no_batches_of_its_own(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(start={"epochs": 0, "batch_size": 4096}, joint={"epochs": 0})
    assert set(run_recipe(recipe, tmp_path / "run").accuracy) == {8, 4, 2}

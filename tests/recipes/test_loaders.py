"""The images of a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bitswitch as bs
from bitswitch.data.loader import Loader
from bitswitch.errors import ConfigError
from bitswitch.recipes import Recipe
from bitswitch.recipes.config import DataConfig, RunConfig
from bitswitch.recipes.job import run_recipe
from bitswitch.recipes.loaders import RecipeData

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training and two held-out images of each of two classes, black on the left and white on the right."""
    pixels = np.zeros((20, 24, 3), np.uint8)
    pixels[:, 12:] = 255
    for part, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def _data(folder: Path, **options: object) -> RecipeData:
    config = DataConfig("folder", folder=str(folder), image_size=16, num_workers=0, **options)  # pyright: ignore[reportArgumentType]
    return RecipeData(config, RunConfig(eval_batch_size=2), CPU)


def _images(loader: Loader, epochs: int = 1) -> torch.Tensor:
    return torch.cat([images for epoch in range(epochs) for images, _ in loader.epoch(epoch)])


def test_without_augmentation_training_images_of_a_folder_stay_as_they_are(folder: Path) -> None:
    plain = _images(_data(folder, augment=False).training(4, seed=0), epochs=2)
    assert torch.equal(plain, plain[:1].expand_as(plain))
    assert torch.equal(plain[0], _images(_data(folder).held_out())[0])
    assert not torch.equal(plain, _images(_data(folder).training(4, seed=0), epochs=2))


def test_calibration_images_of_a_folder_are_not_augmented(folder: Path) -> None:
    images = _images(_data(folder).calibration(4))
    assert torch.equal(images, images[:1].expand_as(images))


def test_fewer_images_of_a_folder(folder: Path) -> None:
    data = _data(folder, max_train=5, max_eval=3)
    assert data.training(4, seed=0).num_samples == 5
    assert data.held_out().num_samples == len(_images(data.held_out())) == 3


def test_folders_of_other_classes_are_refused(folder: Path) -> None:
    (folder / "val" / "cat").rename(folder / "val" / "ape")
    with pytest.raises(ConfigError, match=r"val has a class 'ape' that .*train has not"):
        _data(folder)
    with pytest.raises(ConfigError, match="neither train/ nor val/"):
        _data(folder / "train")


def test_a_folder_without_training_images_serves_evaluation(folder: Path) -> None:
    (folder / "train").rename(folder / "other")
    assert _data(folder).held_out().num_samples == 4


def test_a_network_needs_an_output_for_every_class(folder: Path) -> None:
    data = _data(folder)
    for outputs in (1, 3):
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, outputs))
        with pytest.raises(ConfigError, match=f"{outputs} outputs, but .* 2 classes"):
            data.check_outputs(network)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2), nn.BatchNorm1d(2))
    data.check_outputs(network)
    assert network.training
    assert network[2].num_batches_tracked == 0


def test_a_network_must_take_the_shape_of_the_images(folder: Path) -> None:
    data = _data(folder)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    engine = bs.prepare(network, bits=(8, 4), example_inputs=torch.zeros(1, 1, 8, 8), force="0")
    bs.calibrate(engine, [torch.rand(2, 1, 8, 8)])
    for model in (network, bs.deploy(engine)):
        with pytest.raises(
            ConfigError, match=r"cannot take the images of data.kind=folder, which are 3×16×16: .*channels"
        ):
            data.check_outputs(model)


def test_a_job_asks_for_the_outputs_before_it_trains(tiny: Recipe, tmp_path: Path) -> None:
    recipe = tiny.replace(model={"num_classes": 7})
    with pytest.raises(ConfigError, match="7 outputs, but .* 10 classes"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()

"""A job that takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch.recipes import Recipe, get_recipe
from bitswitch.recipes.job import Results, run_recipe


def tiny_recipe() -> Recipe:
    return get_recipe("digits").replace(
        model={"options": {"width": 4}},
        data={"max_train": 96, "max_eval": 40},
        start={"epochs": 1, "batch_size": 32},
        prepare={"bits": (8, 4, 2), "calibration_batches": 1},
        joint={"epochs": 2, "batch_size": 32},
        run={"log_every": 1, "checkpoint_every": 2},
    )


@pytest.fixture
def tiny() -> Recipe:
    return tiny_recipe()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("runs") / "digits-tiny"
    return folder, run_recipe(tiny_recipe(), folder)

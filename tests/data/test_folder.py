"""Image folders: the same images for any number of workers, after resuming, and over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bitswitch.data import IMAGENET_NORMALIZATION, FolderLoader
from bitswitch.data.loader import Batch
from bitswitch.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(14):
        path = tmp_path / "images" / ("cat", "dog")[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 24, 3), np.uint8)).save(path)
    return tmp_path / "images"


def _loader(
    folder: Path, train: bool = True, num_workers: int = 0, batch_size: int = 4, **options: Any
) -> FolderLoader:
    return FolderLoader(folder, batch_size, train=train, image_size=16, num_workers=num_workers, **options)


def _same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_any_number_of_workers_gives_the_same(folder: Path) -> None:
    one = list(_loader(folder).epoch(1))
    assert [(x.shape, x.dtype) for x, _ in one] == [((4, 3, 16, 16), torch.float32)] * 3
    assert _same(one, list(_loader(folder, num_workers=2).epoch(1)))
    assert not _same(one, list(_loader(folder).epoch(2)))
    assert not _same(one, list(_loader(folder, seed=1).epoch(1)))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_resuming_in_the_middle(folder: Path, start: int) -> None:
    assert _same(list(_loader(folder).epoch(1, start)), list(_loader(folder).epoch(1))[start:])


def test_ranks_together_are_one_process(folder: Path) -> None:
    ranks = [list(_loader(folder, rank=r, world_size=2).epoch(0)) for r in range(2)]
    joined = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(*ranks, strict=True)]
    assert _same(joined, list(_loader(folder).epoch(0)))


def test_the_global_generator_is_left_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    list(_loader(folder).epoch(0))
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_resizes_and_crops_at_the_centre(folder: Path) -> None:
    batches = list(_loader(folder, train=False, resize=16))
    assert [len(y) for _, y in batches] == [4, 4, 4, 2]
    assert torch.cat([y for _, y in batches]).tolist() == [0] * 7 + [1] * 7
    with Image.open(folder / "cat" / "00.png") as image:
        resized = image.resize((19, 16), Image.Resampling.BILINEAR)
    # The sides 20 × 24 become 16 × 19, of which the centre starts at column round(1.5).
    expected = torch.from_numpy(np.array(resized))[:, 2:18].permute(2, 0, 1)
    assert torch.equal(batches[0][0][0], IMAGENET_NORMALIZATION(expected[None])[0])


def test_default_size_before_the_centre_crop(folder: Path) -> None:
    loader = FolderLoader(folder, 2, train=False, num_workers=0, channels_last=True)
    images, _ = next(iter(loader))
    assert images.shape == (2, 3, 224, 224)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_split(folder: Path) -> None:
    whole = _loader(folder, train=False)
    rest, part = whole.split(3 / 7)
    assert rest.labels.bincount().tolist() == [4, 4]
    assert torch.cat([labels for _, labels in part]).bincount().tolist() == [3, 3]
    assert sum(len(labels) for _, labels in whole) == 14


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_image_is_named(folder: Path, num_workers: int) -> None:
    (folder / "dog" / "03.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match=r"^[^\n]*dog.03\.png: not a readable image[^\n]*$"):
        list(_loader(folder, num_workers=num_workers).epoch(0))


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        _loader(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a folder of class folders"):
        _loader(folder / "cat")
    (folder / "bird").mkdir()
    with pytest.raises(ConfigError, match="bird"):
        _loader(folder)

"""Image folders such as ImageNet's: one sub-folder a class, decoded and augmented by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bitswitch.data.decode import open_image
from bitswitch.data.images import IMAGENET_NORMALIZATION, Normalization
from bitswitch.data.loader import Batch, Loader
from bitswitch.data.order import BatchOrder, derive_seed
from bitswitch.errors import ConfigError
from bitswitch.integrations._lookup import import_optional


class FolderLoader(Loader):
    """Batches from a folder with one sub-folder of images a class.

    Training images are cropped at random (area and aspect ratio) and mirrored at random, others resized and cropped at
    the centre. The randomness of an image depends on (seed, epoch, index), not on the number of workers.

    Args:
        folder: holds the class folders; classes are numbered by name.
        batch_size: samples a batch over all processes together.
        train: shuffle, augment and drop an incomplete last batch; or give everything in order.
        augment: whether training images are augmented; if not, they are resized and cropped at the centre too.
        image_size: height and width of the images given, in pixels.
        resize: length of the shorter side before the centre crop; None for image_size · 256/224.
        crop_area: smallest share of the image's area that a random crop covers.
        num_workers: processes that decode; None for as many as there are processors, at most 8.
        normalization: for 3 channels.
        seed: of the shuffling and the augmentation.
        rank: this process.
        world_size: number of processes.
        channels_last: give images in the channels_last memory format.
        device: where batches go; None leaves them on the CPU.

    Raises:
        ConfigError: torchvision is not installed, the folder is missing or has no classes, or a class has no image.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        batch_size: int,
        *,
        train: bool,
        augment: bool = True,
        image_size: int = 224,
        resize: int | None = None,
        crop_area: float = 0.08,
        num_workers: int | None = None,
        normalization: Normalization = IMAGENET_NORMALIZATION,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        samples, classes = _scan(Path(folder))
        order = BatchOrder(len(samples), batch_size, train, seed, rank, world_size)
        super().__init__(order, classes, normalization, channels_last, device)
        v2 = import_optional("torchvision.transforms.v2", "reading image folders")
        if train and augment:
            crops = [v2.RandomResizedCrop(image_size, (crop_area, 1.0)), v2.RandomHorizontalFlip()]
        else:
            crops = [v2.Resize(resize or round(image_size * 256 / 224)), v2.CenterCrop(image_size)]
        self.num_workers = min(8, _num_processors()) if num_workers is None else num_workers
        self._dataset = _FolderDataset(samples, v2.Compose([*crops, v2.PILToTensor()]), seed)

    @property
    def labels(self) -> Tensor:
        """The classes of all samples: int64 (N,)."""
        return torch.tensor([label for _, label in self._dataset.samples])

    def _keep(self, indices: Tensor) -> None:
        samples, own = self._dataset.samples, self._dataset
        self._dataset = _FolderDataset([samples[i] for i in indices.tolist()], own.transform, own.seed)

    def _raw_batches(self, epoch: int, parts: list[Tensor]) -> Iterator[Batch]:
        loader = DataLoader(
            self._dataset,
            batch_sampler=[[(epoch, index) for index in part.tolist()] for part in parts],
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=self.device is not None and self.device.type == "cuda",
            # DataLoader draws the seed of its workers; from the global generator this would disturb the training.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, ConfigError):
                raise batch
            yield batch


class _FolderDataset(Dataset[Any]):
    """Samples by (epoch, index), so that one object serves all epochs and every worker."""

    def __init__(self, samples: list[tuple[str, int]], transform: Any, seed: int) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, int] | ConfigError:
        epoch, sample = index
        path, label = self.samples[sample]
        try:
            image = open_image(path, "RGB", path)
        except ConfigError as error:
            # Raised by the main process: from a worker it would arrive buried in a traceback.
            return error
        with _seeded(derive_seed(self.seed, epoch, 1, sample)):
            return self.transform(image), label


def _collate(samples: list[tuple[Tensor, int] | ConfigError]) -> Batch | ConfigError:
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, ConfigError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # torchvision draws from the global CPU generator. torch.manual_seed would reseed the GPU's as well.
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _scan(folder: Path) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    if not folder.is_dir():
        raise ConfigError(f"the image folder {folder} does not exist")
    datasets = import_optional("torchvision", "reading image folders").datasets
    try:
        found = datasets.ImageFolder(folder)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} is not a folder of class folders with images: {error}") from error
    return found.samples, tuple(found.classes)


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

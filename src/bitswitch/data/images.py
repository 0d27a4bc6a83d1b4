"""Labelled images in memory, and their normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitswitch.data.order import seeded_generator
from bitswitch.errors import ArgumentError, ConfigError


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of images scaled to 0…1.

    Attributes:
        mean: one value a channel.
        std: one value a channel, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ConfigError(f"a mean and a positive std are needed for every channel; got {self.mean} and {self.std}")

    def __call__(self, images: Tensor) -> Tensor:
        """Return (x / 255 − mean) / std.

        Args:
            images: uint8 (N, C, H, W).

        Returns:
            float32 tensor of the same shape, device and memory format.
        """
        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        return images.float().div_(255).sub_(mean).div_(std)


IMAGENET_NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Not CIFAR's own statistics: the widely used CIFAR ResNet weights were trained with those of ImageNet.
CIFAR_NORMALIZATION = IMAGENET_NORMALIZATION
DIGITS_NORMALIZATION = Normalization((0.3053,), (0.3760,))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, in memory.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), values in 0…len(classes) − 1.
        classes: the names of the classes.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ArgumentError(f"images are uint8 (N, C, H, W); got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ArgumentError(
                f"labels are int64 ({len(self.images)},); got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        outside = (self.labels < 0) | (self.labels >= len(self.classes))
        if outside.any():
            row = int(outside.nonzero()[0])
            raise ConfigError(f"row {row}: label {int(self.labels[row])} is not one of {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageSet:
        """Return the images at `indices` (int64 positions or a bool mask), in that order."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes)

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Split off a part in which the classes are as frequent as in the whole.

        Args:
            fraction: share of every class that goes to the second set, rounded to whole images.
            seed: chooses the images; the same seed gives the same split.

        Returns:
            (the rest, the part split off), both in the original order.

        Raises:
            ConfigError: `fraction` is not between 0 and 1.
        """
        chosen = stratified(self.labels, fraction, seed)
        return self.subset(~chosen), self.subset(chosen)


def stratified(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Choose a share of the samples of every class, at random and rounded to whole samples.

    Args:
        labels: int64 (N,).
        fraction: share of every class that is chosen.
        seed: the same seed chooses the same samples.

    Returns:
        bool (N,).

    Raises:
        ConfigError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"the fraction to split off must lie between 0 and 1; got {fraction}")
    generator = seeded_generator(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: round(len(members) * fraction)]]] = True
    return chosen

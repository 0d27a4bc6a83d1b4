"""Random crops and flips of whole batches, with randomness that belongs to the sample and not to the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitswitch.errors import ConfigError


@dataclass(frozen=True)
class CropFlip:
    """Shift each image by up to `padding` pixels, filling with black, and mirror half of them.

    Attributes:
        padding: largest shift in pixels, in each direction.
        flip: whether to mirror left and right.
    """

    padding: int
    flip: bool

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ConfigError(f"the padding of random crops must not be negative; got {self.padding}")

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw the parameters for every sample of a data set.

        Returns:
            int64 (num_samples, 3): first row and first column of the crop in the padded image, and 1 for mirrored.
        """
        offsets = torch.randint(2 * self.padding + 1, (num_samples, 2), generator=generator)
        mirrored = torch.randint(2 if self.flip else 1, (num_samples, 1), generator=generator)
        return torch.cat([offsets, mirrored], dim=1)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Crop and mirror a batch.

        Args:
            images: uint8 (N, C, H, W).
            parameters: the rows of `draw` that belong to these images, (N, 3).

        Returns:
            A new uint8 tensor (N, C, H, W).
        """
        height, width = images.shape[2:]
        padded = F.pad(images, (self.padding,) * 4)
        # A view with one window a shift; indexing it copies just the windows that were drawn.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        top, left, mirrored = parameters.unbind(1)
        crops = windows[torch.arange(len(images)), :, top, left]
        rows = mirrored.nonzero()[:, 0]
        crops[rows] = crops[rows].flip(-1)
        return crops


CIFAR_AUGMENTATION = CropFlip(padding=4, flip=True)
# A mirrored digit is another sign, or none.
DIGITS_AUGMENTATION = CropFlip(padding=1, flip=False)

"""The image sets that recipes name: digits and CIFAR-10."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from sklearn.datasets import load_digits as sklearn_digits

from bitswitch.data.images import ImageSet
from bitswitch.data.parquet import read_parquet
from bitswitch.errors import ConfigError
from bitswitch.integrations._lookup import import_optional

DIGITS_CLASSES = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_digits(seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Return the 1,797 digits of 8×8 pixels that ship with scikit-learn, as training set and held-out fifth.

    Args:
        seed: chooses the fifth, in which all classes are as frequent as in the whole.

    Returns:
        (training set, held-out set); images are uint8 (N, 1, 8, 8).
    """
    pixels, labels = sklearn_digits(return_X_y=True)
    # They come as 0…16; the files of other sets use the whole range of a byte.
    images = (torch.from_numpy(pixels) * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
    digits = ImageSet(images, torch.from_numpy(labels).to(torch.int64), DIGITS_CLASSES)
    return digits.split(0.2, seed)


def load_cifar10(folder: str | PathLike[str], split: Literal["train", "test"], *, download: bool = False) -> ImageSet:
    """Read CIFAR-10 from a local folder, in whichever of the usual forms it is there.

    These are Parquet files of Hugging Face (`{split}.parquet` or `{split}-*.parquet`, also in a folder `plain_text`)
    and the folder `cifar-10-batches-py` of torchvision.

    Args:
        folder: the folder that holds one of these.
        split: "train" (50,000 images) or "test" (10,000).
        download: let torchvision fetch what is not there.

    Returns:
        The images as uint8 (N, 3, 32, 32).

    Raises:
        ConfigError: the folder or its data are missing or damaged.
    """
    folder = Path(folder)
    if split not in ("train", "test"):
        raise ConfigError(f"CIFAR-10 has the splits 'train' and 'test'; got {split!r}")
    for base in (folder, folder / "plain_text"):
        files = [base / f"{split}.parquet"] if (base / f"{split}.parquet").is_file() else []
        files = files or sorted(base.glob(f"{split}-*.parquet"))
        if files:
            return read_parquet(*files, classes=CIFAR10_CLASSES)
    if not download and not (folder / "cifar-10-batches-py").is_dir():
        raise ConfigError(
            f"no CIFAR-10 in {folder}: expected {split}.parquet, {split}-*.parquet (also in plain_text/), "
            "or torchvision's folder cifar-10-batches-py"
        )
    datasets = import_optional("torchvision", "reading cifar-10-batches-py").datasets
    try:
        cifar = datasets.CIFAR10(folder, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"cannot read CIFAR-10 from {folder}: {error}") from error
    images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(cifar.targets), CIFAR10_CLASSES)

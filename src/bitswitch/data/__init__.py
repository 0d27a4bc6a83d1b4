"""Image sets in memory or in folders, and loaders that resume exactly."""

from bitswitch.data.augment import CIFAR_AUGMENTATION, DIGITS_AUGMENTATION, CropFlip
from bitswitch.data.folder import FolderLoader
from bitswitch.data.images import (
    CIFAR_NORMALIZATION,
    DIGITS_NORMALIZATION,
    IMAGENET_NORMALIZATION,
    ImageSet,
    Normalization,
)
from bitswitch.data.loader import Batch, Loader, MemoryLoader
from bitswitch.data.order import BatchOrder
from bitswitch.data.parquet import read_parquet
from bitswitch.data.sources import CIFAR10_CLASSES, load_cifar10, load_digits

__all__ = [
    "CIFAR10_CLASSES",
    "CIFAR_AUGMENTATION",
    "CIFAR_NORMALIZATION",
    "DIGITS_AUGMENTATION",
    "DIGITS_NORMALIZATION",
    "IMAGENET_NORMALIZATION",
    "Batch",
    "BatchOrder",
    "CropFlip",
    "FolderLoader",
    "ImageSet",
    "Loader",
    "MemoryLoader",
    "Normalization",
    "load_cifar10",
    "load_digits",
    "read_parquet",
]

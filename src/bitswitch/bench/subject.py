"""The network that is measured: a checkpoint of the user's, or an architecture with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.checkpoint import CheckpointInfo, read_info
from bitswitch.errors import ConfigError
from bitswitch.models import Architecture
from bitswitch.runtime import Engine

_DIGITS, _CIFAR, _USUAL = (1, 8, 8), (3, 32, 32), (3, 224, 224)


@dataclass(frozen=True)
class Subject:
    """A checkpoint to measure, and how its network is called.

    Attributes:
        name: for people.
        folder: of the checkpoint.
        architecture: what the checkpoint is made of.
        bits: widths to measure, descending.
        input_shape: of one input, without the batch.
        dynamic: deploy layers that were prepared with float inputs, with codes computed for each row.
    """

    name: str
    folder: Path
    architecture: Architecture
    bits: tuple[int, ...]
    input_shape: tuple[int, ...]
    dynamic: bool = False

    def inputs(self, batch: int) -> Tensor:
        """Return random inputs."""
        return torch.randn(batch, *self.input_shape, generator=torch.Generator().manual_seed(0))

    def float_network(self) -> nn.Module:
        """Build the float network with random weights, which takes the same time as any others."""
        return self.architecture.build().eval()

    def simulated(self) -> nn.Module:
        """Open the checkpoint for computing in floats, at the largest width."""
        return bs.load(self.folder, into=without_memory(self.architecture), bits=self.bits[0])

    def engine(self, bits: int | None = None, **options: Any) -> Engine:
        """Open the checkpoint for integer execution.

        Args:
            bits: width to open at; None for the largest of those measured.
            **options: further arguments of `bitswitch.deploy`.
        """
        into = without_memory(self.architecture)
        return bs.deploy(self.folder, into=into, bits=bits or self.bits[0], dynamic=self.dynamic, **options)


def open_subject(
    model: str,
    scratch: Path,
    *,
    bits: Sequence[int] = (),
    input_shape: Sequence[int] = (),
    image_size: int | None = None,
    first_last: Literal["float", "8"] = "float",
    dynamic: bool = False,
) -> Subject:
    """Find or make the checkpoint that is measured.

    Args:
        model: a checkpoint folder, or the name of an architecture such as "torchvision/resnet18".
        scratch: a folder for the checkpoint of a named architecture.
        bits: widths to measure; by default all that the checkpoint has, or 8, 6, 4 and 2.
        input_shape: of one input, such as (3, 224, 224); by default what the architecture is known for.
        image_size: height and width instead, with the usual number of channels.
        first_last: how the first and last layers of a named architecture are treated, see `bitswitch.prepare`.
        dynamic: see `Subject`.

    Raises:
        ConfigError: there is neither such a folder nor such an architecture, a width is not there, or the network does
            not take such inputs.
    """
    folder = Path(model)
    if folder.is_dir():
        info = read_info(folder)
        if info.config.architecture is None:
            raise ConfigError(f"{folder} does not say which network it holds; save it with architecture=")
        architecture = Architecture.from_json(info.config.architecture)
        shape = tuple(input_shape) or _input_shape(architecture, image_size)
        _check_shape(architecture, shape)
        return Subject(architecture.full_name, folder, architecture, _widths(info, bits), shape, dynamic)
    if folder.exists() or model.startswith((".", "/")) or (folder.parent.is_dir() and model.count("/") > 1):
        raise ConfigError(f"{model} is not a checkpoint folder")
    architecture = Architecture.of(model)
    shape = tuple(input_shape) or _input_shape(architecture, image_size)
    _check_shape(architecture, shape)
    _save(architecture, scratch, tuple(bits) or (8, 6, 4, 2), shape, first_last)
    return Subject(model, scratch, architecture, _widths(read_info(scratch), bits), shape, dynamic)


def _check_shape(architecture: Architecture, shape: tuple[int, ...]) -> None:
    network = architecture.build().eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *shape))
    except Exception as error:  # whatever the network's own code raises
        sizes = "×".join(map(str, shape))
        raise ConfigError(f"{architecture.full_name} does not take inputs of {sizes}: {error}") from error


def _save(
    architecture: Architecture, folder: Path, bits: tuple[int, ...], shape: tuple[int, ...], first_last: str
) -> None:
    torch.manual_seed(0)
    network, images = architecture.build(), torch.randn(2, *shape)
    model = bs.prepare(network, bits=bits, example_inputs=images, first_last=8 if first_last == "8" else "float")
    bs.calibrate(model, [images])
    bs.save(model, folder, architecture=architecture.to_json())


def _widths(info: CheckpointInfo, asked: Sequence[int]) -> tuple[int, ...]:
    missing = [width for width in asked if width not in info.bits_available]
    if missing or not info.bits_available:
        there = ", ".join(map(str, info.bits_available)) or "none"
        wanted = f"{missing[0]} bits cannot be opened" if missing else "no width can be opened"
        raise ConfigError(f"{info.folder}: {wanted}; widths that can: {there}")
    return tuple(sorted(set(asked) or info.bits_available, reverse=True))


def _input_shape(architecture: Architecture, image_size: int | None) -> tuple[int, ...]:
    shape = _USUAL
    if architecture.source == "bitswitch":
        shape = _DIGITS if architecture.name.startswith("digits") else _CIFAR
    elif architecture.source == "timm":
        settings = getattr(without_memory(architecture), "default_cfg", None) or {}
        shape = tuple(settings.get("input_size", _USUAL))
    return shape if image_size is None else (shape[0], image_size, image_size)


def without_memory(architecture: Architecture) -> nn.Module:
    """Build a network whose weights have shapes but no values, if it can be built so."""
    try:
        with torch.device("meta"):
            return architecture.build()
    except (RuntimeError, NotImplementedError):
        # Some networks compute with values while they are built.
        return architecture.build()

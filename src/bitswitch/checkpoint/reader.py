"""Reading the data files of a checkpoint: only those that are needed, each checked before it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from bitswitch._files import open_tensors
from bitswitch._planes import empty_codes, leading_planes, merge_planes
from bitswitch.checkpoint.config import CheckpointConfig, with_config
from bitswitch.checkpoint.contents import check_base, check_plane
from bitswitch.errors import MissingPlanesError


@contextmanager
def open_base(folder: Path, config: CheckpointConfig) -> Iterator[dict[str, Tensor]]:
    """Map the base file and yield its tensors, valid inside the `with` block only.

    Raises:
        CheckpointError: the file is missing or damaged, or a scale, zero point or statistic is unusable.
    """
    with open_tensors(folder, config.base) as tensors:
        check_base(config, tensors, str(folder / config.base.file))
        yield tensors


def read_codes(
    folder: Path,
    config: CheckpointConfig,
    needed: Mapping[str, int],
    held: Mapping[str, tuple[Tensor, int]] | None = None,
) -> dict[str, Tensor]:
    """Read the planes that are needed and not held, and return the codes that they complete.

    Args:
        folder: the checkpoint.
        config: its checked configuration.
        needed: number of leading planes by layer.
        held: codes in memory and how many leading planes of them count; they are not changed.

    Returns:
        int8 codes, out-first, on the CPU, of each layer for which something was read.

    Raises:
        MissingPlanesError: a plane is not stored, or its file is not there; all such files are named.
        CheckpointError: a file is damaged.
    """
    held = held or {}
    start = {name: held[name][1] if name in held else 0 for name in needed}
    wanted = {name: range(start[name], count) for name, count in needed.items() if count > start[name]}
    _check_present(folder, config, wanted)
    codes: dict[str, Tensor] = {}
    for index in sorted({index for planes in wanted.values() for index in planes}):
        with open_tensors(folder, config.planes[index]) as tensors:
            check_plane(config, index, tensors, str(folder / config.planes[index].file))
            for name in (name for name, planes in wanted.items() if index in planes):
                stored_bits, weight = config.table[name].bits[0], config.weights[name]
                if name not in codes:
                    # Only now is the number of codes known to be that of a file which is really there.
                    known = leading_planes(*held[name], stored_bits) if name in held else None
                    codes[name] = empty_codes(weight.num_codes, stored_bits) if known is None else known
                merge_planes(codes[name], {index: tensors[name]}, stored_bits)
    return {name: flat.reshape(config.weights[name].shape) for name, flat in codes.items()}


def map_planes(folder: Path, config: CheckpointConfig, wanted: Mapping[str, range]) -> dict[str, list[Tensor]]:
    """Map planes into memory; they are read from the files as they are used.

    Args:
        folder: the checkpoint.
        config: its checked configuration.
        wanted: indices of planes by layer.

    Returns:
        Packed planes as they are stored, in order, by layer. A file stays mapped as long as one of its tensors lives.

    Raises:
        MissingPlanesError: a plane is not stored, or its file is not there; all such files are named.
        CheckpointError: a file is damaged.
    """
    _check_present(folder, config, wanted)
    planes: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for index in sorted({index for indices in wanted.values() for index in indices}):
        with open_tensors(folder, config.planes[index]) as tensors:
            check_plane(config, index, tensors, str(folder / config.planes[index].file))
            for name in (name for name, indices in wanted.items() if index in indices):
                planes[name].append(tensors[name])
    return planes


def verify(folder: str | os.PathLike[str]) -> CheckpointConfig:
    """Check every file of a checkpoint that is there; files of planes may be absent.

    Raises:
        CheckpointError: a file is damaged, or config.json or the base file is missing.
    """
    folder = Path(folder)
    return with_config(folder, lambda config: _verify(folder, config))


def _verify(folder: Path, config: CheckpointConfig) -> CheckpointConfig:
    with open_base(folder, config):
        pass
    for index, record in enumerate(config.planes):
        if os.path.exists(folder / record.file):
            with open_tensors(folder, record) as tensors:
                check_plane(config, index, tensors, str(folder / record.file))
    return config


def _check_present(folder: Path, config: CheckpointConfig, wanted: Mapping[str, range]) -> None:
    for name, planes in wanted.items():
        stored = config.weights[name].planes
        if planes.stop > stored:
            raise MissingPlanesError(
                f"{folder}: layer {name!r} needs {planes.stop} bit planes, but this checkpoint was saved with {stored}"
            )
    indices = sorted({index for planes in wanted.values() for index in planes})
    # A link to a file that was not downloaded counts as missing.
    missing = [config.planes[i].file for i in indices if not os.path.exists(folder / config.planes[i].file)]
    if missing:
        raise MissingPlanesError(f"{folder}: bit planes are missing that this precision needs: {', '.join(missing)}")

"""What a checkpoint folder contains, without loading it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitswitch._files import FileRecord
from bitswitch.checkpoint.config import CONFIG_NAME, CheckpointConfig, read_config
from bitswitch.errors import BitswitchError, CheckpointError


@dataclass(frozen=True)
class CheckpointInfo:
    """Description of a checkpoint folder.

    Attributes:
        folder: the folder.
        config: its checked configuration: layer table, architecture, files.
        files: size in bytes of config.json, the base file and each plane, by name, as they should be.
        missing: names of the files that are not there, or not of their size.
        wrong_sizes: bytes found, by name, of those among them that are there, such as a copy that was interrupted.
        bits_available: the uniform widths that can be opened with the files that are there, descending.
        bytes_at: for every uniform width that is stored, the bytes of the files that it needs.
        num_weights: number of quantized weights, each counted once.
        float_bytes: size of the same weights as float32, plus the base file.
    """

    folder: Path
    config: CheckpointConfig
    files: Mapping[str, int]
    missing: tuple[str, ...]
    wrong_sizes: Mapping[str, int]
    bits_available: tuple[int, ...]
    bytes_at: Mapping[int, int]
    num_weights: int
    float_bytes: int

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with each file of `missing`, as text that begins with its name."""
        return tuple(
            f"{name} ({self.wrong_sizes[name]} of {self.files[name]} bytes)" if name in self.wrong_sizes else name
            for name in self.missing
        )

    @property
    def planes_missing(self) -> tuple[int, ...]:
        """Indices of the planes whose files are missing."""
        return tuple(i for i, record in enumerate(self.config.planes) if record.file in self.missing)


def read_info(folder: str | os.PathLike[str]) -> CheckpointInfo:
    """Describe a checkpoint folder; only config.json is read.

    Raises:
        CheckpointError: config.json is missing, altered or inconsistent.
    """
    folder = Path(folder)
    config = read_config(folder)
    records = (config.base, *config.planes)
    found = {record.file: _size(folder, record) for record in records}
    missing = tuple(record.file for record in records if found[record.file] != record.size)
    config_bytes = os.stat(folder / CONFIG_NAME).st_size
    bytes_at: dict[int, int] = {}
    available: list[int] = []
    for bits in config.bits:
        needed = _files_needed(config, bits)
        if needed is None:
            continue
        bytes_at[bits] = config_bytes + sum(record.size for record in needed)
        if not any(record.file in missing for record in needed):
            available.append(bits)
    num_weights = sum(weight.num_codes for weight in config.weights.values())
    return CheckpointInfo(
        folder=folder,
        config=config,
        files={CONFIG_NAME: config_bytes, **{record.file: record.size for record in records}},
        missing=missing,
        wrong_sizes={name: size for name in missing if (size := found[name]) is not None},
        bits_available=tuple(available),
        bytes_at=bytes_at,
        num_weights=num_weights,
        float_bytes=config.base.size + sum(_as_float(config, name) for name in config.weights),
    )


def checkpoint_bits_available(folder: str | os.PathLike[str]) -> tuple[int, ...]:
    """Return the uniform widths that a checkpoint can be opened at with the files that are there, descending.

    Raises:
        CheckpointError: config.json is missing, altered or inconsistent.
    """
    return read_info(folder).bits_available


def _files_needed(config: CheckpointConfig, bits: int) -> list[FileRecord] | None:
    """Return the files that a uniform width needs, or None if the checkpoint was saved without some of its planes."""
    try:
        # Layers that are pinned to another width keep it.
        widths = {n: bits if bits in widths else widths[0] for n, widths in config.table.available.items()}
        needed = config.needed(widths)
    except BitswitchError:
        return None
    if any(count > config.weights[name].planes for name, count in needed.items()):
        return None
    return [config.base, *config.planes[: max(needed.values(), default=0)]]


def _as_float(config: CheckpointConfig, name: str) -> int:
    """Return how many bytes a weight takes as float32, beyond what the base file holds of it already."""
    weight = config.weights[name]
    held = 0 if weight.planes else 1 if config.options.shared else 4
    return (4 - held) * weight.num_codes


def _size(folder: Path, record: FileRecord) -> int | None:
    try:
        return os.stat(folder / record.file).st_size
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            return None
        raise CheckpointError(f"{folder / record.file}: cannot be examined: {error}") from None

"""State of a running program: tensors and JSON, saved and read without pickle."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bitswitch._files.reading import read_settled
from bitswitch._files.records import FileRecord, open_tensors
from bitswitch._files.writing import locked, remove_unreferenced, write_document, write_tensors
from bitswitch.errors import ArgumentError, CheckpointError

_FORMAT = "bitswitch-state"
_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


def write_state(folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: Any, name: str = "state") -> None:
    """Save tensors and JSON as `name.json` and `name-HASH.safetensors`, replacing an earlier state atomically.

    Killed at any moment, it leaves the old state or the new one.

    Args:
        folder: where; it is created if needed.
        tensors: by name, strided, of any shape; they are copied to the CPU one at a time.
        meta: any JSON value.
        name: distinguishes several states in one folder; not "config", "base" or "plane", which belong to checkpoints.

    Raises:
        ArgumentError: a tensor, a name or a value that cannot be stored, or more tensors than a file holds.
        CheckpointError: `folder` is a file.
    """
    _check_name(name)
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ArgumentError(f"state {name!r}: expected tensors by name, found {key!r}: {type(tensor).__name__}")
    folder = Path(folder)
    with locked(folder):
        record = write_tensors(folder, name, tensors)
        members = {"format": _FORMAT, "version": _VERSION, "data": record.to_json(), "meta": meta}
        write_document(folder, f"{name}.json", members)
        remove_unreferenced(folder, re.escape(name), {record.file})


def read_state(folder: str | os.PathLike[str], name: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Read what `write_state` saved, also while another process saves there again.

    Returns:
        The tensors by name, on the CPU and with memory of their own, and the JSON value.

    Raises:
        ArgumentError: `name` is not one that `write_state` accepts.
        CheckpointError: a file is missing, truncated, altered or malformed.
    """
    _check_name(name)
    folder = Path(folder)
    path = folder / f"{name}.json"
    return read_settled(path, lambda members: _read_members(folder, name, path, members))


def _read_members(folder: Path, name: str, path: Path, members: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    if set(members) != {"format", "version", "data", "meta"} or members["format"] != _FORMAT:
        raise CheckpointError(f"{path}: expected a state with exactly format, version, data and meta")
    if type(members["version"]) is not int or members["version"] != _VERSION:
        raise CheckpointError(f"{path}: version: expected {_VERSION}, found {str(members['version'])[:40]}")
    record = FileRecord.from_json(members["data"], name, f"{path}: data")
    with open_tensors(folder, record) as views:
        tensors = {key: view.clone() for key, view in views.items()}
    return tensors, members["meta"]


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or re.match(r"(config|base|plane)(-|$)", name):
        raise ArgumentError(f"state names are letters, digits, _ and -, and not those of checkpoints; got {name!r}")

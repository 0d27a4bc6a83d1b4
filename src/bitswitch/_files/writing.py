"""Writing files so that a reader, or the next process after a crash, sees the old ones or the new ones complete."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bitswitch._files.documents import seal
from bitswitch._files.records import HASH_DIGITS, SUFFIX, FileRecord, file_name
from bitswitch._files.tensors import build_header
from bitswitch.errors import CheckpointError

_TEMPORARY = re.compile(r"\.bitswitch-[0-9a-f]{16}\.tmp")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` if needed and hold its writers' lock; it is released when the process dies.

    Raises:
        CheckpointError: the path is taken by something that is not a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CheckpointError(f"{folder}: expected a folder, found a file") from None
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems have no locks; a single writer does not need one.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write tensors to `stem-HASH.safetensors` and return its record.

    Raises:
        ArgumentError: a tensor, or so many of them, cannot be stored.
    """
    header, order = build_header(tensors)
    digest = hashlib.sha256()
    size = 0

    def write(file: BinaryIO) -> None:
        nonlocal size
        for chunk in _chunks(header, order, tensors):
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)

    name = _write_atomically(folder, stem, write, lambda: file_name(stem, digest.hexdigest()))
    return FileRecord(name, size, digest.hexdigest())


def write_document(folder: Path, name: str, members: Mapping[str, Any]) -> None:
    """Write a sealed document; the moment its name appears is the moment its data files count.

    Raises:
        ArgumentError: `members` is not JSON.
    """
    sealed = seal(members)
    _write_atomically(folder, name, lambda file: file.write(sealed), lambda: name)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all; folders above it are made.

    Raises:
        CheckpointError: its path is a folder or a device, or the path of its folder is a file.
        OSError: it cannot be written; the error names it, and an older file is still there.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'a device or pipe'}")
    # Who holds the lock removes the temporary files of all others as those of killed writers.
    with locked(path.parent):
        _write_atomically(path.parent, path.name, lambda file: file.write(content), lambda: path.name)


def remove_unreferenced(folder: Path, stems: str, keep: Collection[str]) -> None:
    """Remove data files of ours that no document needs any more, and what a killed writer left behind.

    The caller holds the lock of the folder, so that no other writer is alive in it.

    Args:
        folder: where to look; not below it.
        stems: regular expression of the stems that are ours.
        keep: names to keep.
    """
    ours = re.compile(rf"(?:{stems})-[0-9a-f]{{{HASH_DIGITS}}}{re.escape(SUFFIX)}")
    for entry in list(os.scandir(folder)):
        stale = ours.fullmatch(entry.name) and entry.name not in keep
        if (stale or _TEMPORARY.fullmatch(entry.name)) and not entry.is_dir(follow_symlinks=False):
            # It is no harm if one stays: the next save tries again.
            with suppress(OSError):
                os.unlink(entry.path)


def _chunks(header: bytes, order: list[str], tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for name in order:
        tensor = tensors[name].detach().cpu().contiguous().reshape(-1)
        if tensor.numel():
            yield tensor.view(torch.uint8).numpy().data


def _write_atomically(folder: Path, stem: str, write: Callable[[BinaryIO], Any], name: Callable[[], str]) -> str:
    """Write a temporary file, flush it to the disk, and rename it to what `name()` says once it is written.

    `stem` is what the name begins with; errors name the file by it.
    """
    temporary = folder / f".bitswitch-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        target = name()
        os.replace(temporary, folder / target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            # As when the disk is full: a write that fails does not know its file.
            error.filename = str(folder / stem)
        raise
    _sync_folder(folder)
    return target


def _sync_folder(folder: Path) -> None:
    # Folders cannot be opened on Windows, and renames are flushed there anyway.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Opening files that others may have written: regular files only, of a known size, never blocking."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from bitswitch._files.documents import MAX_DOCUMENT_BYTES, unseal
from bitswitch.errors import CheckpointError

# A FIFO would block in open() without O_NONBLOCK; what is not a regular file is refused after it is open, by its inode.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_ATTEMPTS = 10

MappedFile = mmap.mmap

T = TypeVar("T")


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, int]]:
    """Open a regular file (or a symbolic link to one) and yield its descriptor and its size in bytes.

    Raises:
        CheckpointError: there is no such file, or it is a directory, FIFO, device or socket, or it cannot be opened.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected a file, found none") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be opened: {error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: expected a regular file, found {_kind(status.st_mode)}")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read_document(path: Path) -> dict[str, Any]:
    """Read a document that was written by `write_document`.

    Raises:
        CheckpointError: it is missing, too large, altered or not JSON.
    """
    with open_regular(path) as (descriptor, size):
        if size > MAX_DOCUMENT_BYTES:
            raise CheckpointError(f"{path}: expected at most {MAX_DOCUMENT_BYTES} bytes, found {size}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            raw = file.read(size)
    return unseal(raw, str(path))


def read_settled(path: Path, read: Callable[[dict[str, Any]], T]) -> T:
    """Read a document and data files that it names, all of one writing.

    Who replaces a document removes the data files of the one before. If that happens before `read` has opened them, it
    is called again with the new document; after a few times, its error is the answer.

    Args:
        path: the document.
        read: takes the members of the document and opens the data files.

    Returns:
        What `read` returned.

    Raises:
        CheckpointError: as `read_document` and `read` do.
    """
    for _ in range(_ATTEMPTS - 1):
        members = read_document(path)
        try:
            return read(members)
        except CheckpointError:
            if read_document(path) == members:
                raise
    return read(read_document(path))


@contextmanager
def map_file(path: Path, size: int, sha256: str) -> Iterator[MappedFile]:
    """Map a data file into memory after checking its size, and yield it after checking its content.

    The mapping is private: what is written to it does not reach the file. A file that is cut short by somebody else
    while it is mapped ends the process with SIGBUS.

    Args:
        path: the file.
        size: its size in bytes, at least 1.
        sha256: hexadecimal SHA-256 of its content.

    Raises:
        CheckpointError: it is missing, of another size or content, or not a regular file.
    """
    with open_regular(path) as (descriptor, found):
        if found != size:
            raise CheckpointError(f"{path}: expected {size} bytes, found {found}")
        try:
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path}: cannot be mapped: {error}") from None
    try:
        digest = hashlib.sha256(mapped).hexdigest()
        if digest != sha256:
            raise CheckpointError(f"{path}: was altered; expected the sha256 {sha256}, found {digest}")
        yield mapped
    finally:
        # Who holds views, be it an exception that is still being handled, keeps the mapping until the last one goes.
        with suppress(BufferError):
            mapped.close()


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return kind
    return "something else"

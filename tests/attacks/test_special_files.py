"""What is not a regular file of the right size is refused at once, without waiting and without reading it."""

from __future__ import annotations

import os
import re
import socket
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from forge import Tiny, make_checkpoint

from bitswitch import checkpoint
from bitswitch.errors import CheckpointError, MissingPlanesError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX files")


def _socket(path: Path) -> None:
    # The address of a socket is limited to about 100 bytes, so it is made where the path is short.
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(path.parent)
        try:
            server.bind("s")
        finally:
            os.chdir(before)
    (path.parent / "s").rename(path)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 34)


REPLACEMENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "directory": (lambda path: path.mkdir(), "found a directory"),
    "fifo": (os.mkfifo, "found a FIFO"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "found a device"),
    "socket": (_socket, "socket|No such device or address"),
    "link-to-directory": (lambda path: path.symlink_to("/"), "found a directory"),
    "link-to-nothing": (lambda path: path.symlink_to("nowhere"), "found none|missing"),
    "link-loop": (_loop, "cannot be opened|missing"),
    "empty": (lambda path: path.write_bytes(b""), "expected"),
    "sparse": (_sparse, "bytes, found 17179869184"),
    "absent": (lambda path: None, "found none|missing"),
}


@pytest.mark.parametrize("stem", ["config", "base", "plane-0", "plane-2"])
@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_replaced(kind: str, stem: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    replace, message = REPLACEMENTS[kind]
    path = next(tmp_path.glob(f"{stem}*"))
    path.unlink()
    replace(path)
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    into = Tiny()
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.load(tmp_path, into=into, bits=3)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < 30
    assert re.search(re.escape(path.name), str(caught.value))
    assert isinstance(caught.value, MissingPlanesError) == ("plane" in stem and "missing" in str(caught.value))
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("folder", ["a\0b", "x" * 5000, "/dev/null", "nowhere"])
def test_folders_that_are_none(folder: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load(folder, into=Tiny())
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.read_info(folder)

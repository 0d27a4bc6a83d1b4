"""What a document says about a data file: its name, size and hash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bitswitch._files.reading import map_file
from bitswitch._files.tensors import parse_header
from bitswitch.errors import CheckpointError

HASH_DIGITS = 16  # of the content hash, in a file's name; the document has all 64
SUFFIX = ".safetensors"
MAX_FILE_BYTES = 1 << 50
_SHA256 = re.compile(r"[0-9a-f]{64}")


def file_name(stem: str, sha256: str) -> str:
    """Return the name of a data file: `stem-HASH.safetensors`."""
    return f"{stem}-{sha256[:HASH_DIGITS]}{SUFFIX}"


@dataclass(frozen=True)
class FileRecord:
    """Identity of a data file.

    Attributes:
        file: its name, `stem-HASH.safetensors`; it is always derived from `sha256`, never taken from a document.
        size: bytes.
        sha256: 64 hexadecimal digits.
    """

    file: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {"file": self.file, "size": self.size, "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: object, stem: str, where: str) -> FileRecord:
        """Check a record read from a document.

        Args:
            value: the JSON value.
            stem: what the file name must begin with.
            where: what an error calls the record.

        Raises:
            CheckpointError: a member is missing, unknown, of the wrong type or out of range.
        """
        if not isinstance(value, dict) or set(value) != {"file", "size", "sha256"}:
            raise CheckpointError(f"{where}: expected exactly file, size and sha256")
        size, sha256 = value["size"], value["sha256"]
        if type(size) is not int or not 8 <= size <= MAX_FILE_BYTES:
            raise CheckpointError(f"{where}: size: expected 8 to {MAX_FILE_BYTES} bytes, found {str(size)[:40]}")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise CheckpointError(f"{where}: sha256: expected 64 hexadecimal digits, found {str(sha256)[:80]!r}")
        expected = file_name(stem, sha256)
        if value["file"] != expected:
            raise CheckpointError(f"{where}: file: expected {expected!r}, found {str(value['file'])[:200]!r}")
        return cls(expected, size, sha256)


@contextmanager
def open_tensors(folder: Path, record: FileRecord) -> Iterator[dict[str, Tensor]]:
    """Map a data file and yield its tensors as views of it, after checking size, hash and header.

    The file stays mapped until the block ends and the last view of it is gone.

    Raises:
        CheckpointError: the file is missing, truncated, altered or malformed.
    """
    path = folder / record.file
    with map_file(path, record.size, record.sha256) as mapped:
        tensors = {name: spec.view(mapped) for name, spec in parse_header(mapped, str(path)).items()}
        try:
            yield tensors
        finally:
            tensors.clear()

"""Files that are written atomically and read with suspicion: sealed JSON documents and safetensors data.

Checkpoints and the run folders of training are both made of these. A document (`config.json`, `state.json`) is small,
carries the SHA-256 of itself and names the data files it belongs to; a data file carries its content hash in its name.
Nothing is ever unpickled, and no number found in a file is used before it has been compared with what is really there.
"""

from __future__ import annotations

from bitswitch._files.documents import SEAL_START, parse_json, seal, unseal
from bitswitch._files.reading import MappedFile, map_file, read_document, read_settled
from bitswitch._files.records import FileRecord, open_tensors
from bitswitch._files.state import read_state, write_state
from bitswitch._files.tensors import TensorSpec, parse_header, why_not_stored
from bitswitch._files.writing import locked, remove_unreferenced, write_document, write_file, write_tensors

__all__ = [
    "SEAL_START",
    "FileRecord",
    "MappedFile",
    "TensorSpec",
    "locked",
    "map_file",
    "open_tensors",
    "parse_header",
    "parse_json",
    "read_document",
    "read_settled",
    "read_state",
    "remove_unreferenced",
    "seal",
    "unseal",
    "why_not_stored",
    "write_document",
    "write_file",
    "write_state",
    "write_tensors",
]

"""The safetensors form of tensors, restricted to what can be checked completely.

The safetensors library reads these files; here they are parsed by hand because a header must be compared with the file
and with the layer table before a tensor is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitswitch._files.documents import canonical_json, parse_json
from bitswitch._files.reading import MappedFile
from bitswitch.errors import ArgumentError, CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 4 << 20
MAX_DIMENSIONS = 16
MAX_ELEMENTS = 1 << 48
MAX_NAME_LENGTH = 1024


@dataclass(frozen=True)
class TensorSpec:
    """Where a tensor lies in a file.

    Attributes:
        dtype: element type.
        shape: dimensions.
        begin: first byte, counted from the start of the file.
        end: byte after the last one.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def view(self, mapped: MappedFile) -> Tensor:
        """Return the tensor as a view of the mapped file; an empty one owns its (no) memory."""
        if self.end == self.begin:
            return torch.empty(self.shape, dtype=self.dtype)
        # Through numpy, whose arrays keep the mapping from being closed under them; torch.frombuffer would not.
        raw = np.frombuffer(mapped, np.uint8, count=self.end - self.begin, offset=self.begin)
        return torch.from_numpy(raw).view(self.dtype).reshape(self.shape)


def why_not_stored(tensor: Tensor) -> str | None:
    """Return why a tensor cannot be stored, as the end of a sentence that begins with its name, or None if it can."""
    if tensor.is_meta:
        return "is on the meta device and has no values"
    if tensor.layout != torch.strided:
        return f"has the layout {tensor.layout}; only strided tensors can be stored"
    if tensor.dtype not in DTYPE_NAMES:
        return f"has the dtype {tensor.dtype}, which cannot be stored"
    return None


def build_header(tensors: Mapping[str, Tensor]) -> tuple[bytes, list[str]]:
    """Return the first bytes of a file for `tensors` (length, header, padding) and the order of their data.

    Tensors are ordered by falling element size, then by name, which keeps every one of them aligned.

    Raises:
        ArgumentError: a tensor cannot be stored, or the header is beyond what `parse_header` accepts.
    """
    for name, tensor in tensors.items():
        reason = why_not_stored(tensor)
        if reason is not None:
            raise ArgumentError(f"tensor {name[:200]!r} {reason}")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {}
    begin = 0
    for name in order:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    header = canonical_json(entries)
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise ArgumentError(f"{len(tensors)} tensors need a header of more than {MAX_HEADER_BYTES} bytes")
    try:
        _parse_entries(header, f"{len(tensors)} tensors")
    except CheckpointError as error:
        raise ArgumentError(f"cannot be stored: {error}") from None
    return len(header).to_bytes(8, "little") + header, order


def parse_header(mapped: MappedFile | bytes, where: str) -> dict[str, TensorSpec]:
    """Parse and check a header; the tensors it describes fill the rest of the file exactly, in order, aligned.

    Args:
        mapped: the whole file.
        where: what an error calls it.

    Raises:
        CheckpointError: naming the tensor and the field that is wrong.
    """
    size = len(mapped)
    if size < 8:
        raise CheckpointError(f"{where}: expected at least 8 bytes, found {size}")
    length = int.from_bytes(mapped[:8], "little")
    if length > min(MAX_HEADER_BYTES, size - 8) or length % 8:
        raise CheckpointError(
            f"{where}: expected a header length that is a multiple of 8 and at most {min(MAX_HEADER_BYTES, size - 8)}, "
            f"found {length}"
        )
    specs = _parse_entries(mapped[8 : 8 + length], where)
    position = 0
    for name, spec in sorted(specs.items(), key=lambda item: (item[1].begin, item[1].end)):
        if spec.begin != position:
            raise CheckpointError(
                f"{where}: tensor {name!r}: data_offsets must follow one another without gap or overlap; "
                f"expected a start of {position}, found {spec.begin}"
            )
        position = spec.end
    if 8 + length + position != size:
        raise CheckpointError(
            f"{where}: the header describes {8 + length + position} bytes, but the file has {size} bytes"
        )
    start = 8 + length
    return {name: TensorSpec(s.dtype, s.shape, start + s.begin, start + s.end) for name, s in specs.items()}


def _parse_entries(raw: bytes, where: str) -> dict[str, TensorSpec]:
    """Parse the JSON of a header; positions are those that it has, counted from its end."""
    entries = parse_json(raw, f"{where}: header")
    if not isinstance(entries, dict):
        raise CheckpointError(f"{where}: header: expected a JSON object, found {type(entries).__name__}")
    specs = {name: _parse_entry(entry, f"{where}: tensor {name[:200]!r}") for name, entry in entries.items()}
    for name in specs:
        if len(name) > MAX_NAME_LENGTH:
            raise CheckpointError(
                f"{where}: tensor {name[:200]!r}: expected tensor names of at most {MAX_NAME_LENGTH} characters"
            )
    return specs


def _parse_entry(entry: object, where: str) -> TensorSpec:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype: expected one of {', '.join(DTYPES)}, found {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: shape: expected up to {MAX_DIMENSIONS} sizes, found {str(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: data_offsets: expected two positions, found {str(offsets)[:80]}")
    count = math.prod(shape)
    # The product of the other dimensions may be huge even if one is zero.
    if math.prod(max(1, size) for size in shape) > MAX_ELEMENTS:
        raise CheckpointError(f"{where}: shape: expected at most {MAX_ELEMENTS} elements, found {shape}")
    begin, end = offsets
    num_bytes = count * DTYPES[dtype].itemsize
    if end - begin != num_bytes:
        raise CheckpointError(f"{where}: data_offsets: expected {num_bytes} bytes for {dtype} {shape}, found {offsets}")
    if begin % DTYPES[dtype].itemsize:
        raise CheckpointError(f"{where}: data_offsets: expected an aligned start for {dtype}, found {begin}")
    return TensorSpec(DTYPES[dtype], tuple(shape), begin, end)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)

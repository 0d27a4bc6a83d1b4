"""Take a good checkpoint apart, change it, and put it together again with hashes that are right."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch import checkpoint


class Tiny(nn.Module):
    """All that a checkpoint can hold, in 80 weights: pinned, per-width, unsigned, signed, tied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.mid = nn.Conv2d(3, 3, 1)
        self.fc1 = nn.Linear(3, 3)
        self.fc2 = nn.Linear(3, 3)
        self.fc2.weight = self.fc1.weight
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.tanh(self.mid(x)).mean((2, 3))
        return self.head(torch.relu(self.fc2(torch.tanh(self.fc1(x)))))


def example() -> Tensor:
    return torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def make_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    model = bs.prepare(Tiny(), (3, 2), example_inputs=example(), first_last=8, granularity={"mid": "channel"})
    bs.calibrate(model, [example()])
    checkpoint.save(model.eval(), folder, architecture={"name": "tiny"})


def seal(body: bytes) -> bytes:
    return b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'",' + body[1:]


def encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


class Data:
    """A data file in parts: header entries, what pads them, data, and optionally raw bytes that replace them."""

    def __init__(self, stem: str, raw: bytes) -> None:
        length = int.from_bytes(raw[:8], "little")
        self.stem = stem
        self.header: Any = json.loads(raw[8 : 8 + length])
        self.data = bytearray(raw[8 + length :])
        self.raw: bytes | None = None
        self.header_bytes: bytes | None = None

    def build(self) -> bytes:
        if self.raw is not None:
            return self.raw
        header = encode(self.header) if self.header_bytes is None else self.header_bytes
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + bytes(self.data)

    def put(self, name: str, data: bytes) -> None:
        begin, end = self.header[name]["data_offsets"]
        assert len(data) == end - begin
        self.data[begin:end] = data


class Forge:
    """A checkpoint in parts.

    Attributes:
        config: members of config.json without the seal.
        base, planes: the data files.
        config_raw: bytes of config.json that replace what would be built.
        keep_records: do not bring names, sizes and hashes in the config up to date.
    """

    def __init__(self, folder: Path) -> None:
        raw = (folder / "config.json").read_bytes()
        self.original = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.config: Any = json.loads(b"{" + raw[77:])
        self.base = Data("base", self.original[self.config["base"]["file"]])
        self.planes = [
            Data(f"plane-{i}", self.original[record["file"]]) for i, record in enumerate(self.config["planes"])
        ]
        self.config_raw: bytes | None = None
        self.keep_records = False
        self.layers = {row["name"]: row for row in self.config["layers"]}

    def files(self) -> dict[str, bytes]:
        """Put the files together, by name."""
        files = {}
        for slot, data in [("base", self.base), *enumerate(self.planes)]:
            raw = data.build()
            digest = hashlib.sha256(raw).hexdigest()
            record = {"file": f"{data.stem}-{digest[:16]}.safetensors", "sha256": digest, "size": len(raw)}
            files[record["file"]] = raw
            if not self.keep_records and self.config_raw is None:
                (self.config if slot == "base" else self.config["planes"])[slot] = record
        config = seal(encode(self.config) + b"\n") if self.config_raw is None else self.config_raw
        return {**files, "config.json": config}

    def write(self, folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name, raw in self.files().items():
            (folder / name).write_bytes(raw)

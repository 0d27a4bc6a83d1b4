"""20,000 random changes of a checkpoint, the greater part of them with hashes that were made right again.

A change without right hashes is refused, whatever it is. With right hashes a change is a new checkpoint: it is refused,
or it is one that keeps all promises of the format (other values of weights, another architecture entry).
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forge import Data, Forge, Tiny, encode, example, make_checkpoint, seal
from safetensors.torch import load

import bitswitch as bs
from bitswitch import checkpoint
from bitswitch.errors import BitswitchError
from bitswitch.layers import iter_layers

NUM_BATCHES, BATCH = 8, 2500
PALETTE: list[Any] = [
    0, 1, 2, 3, 8, -1, 255, 2**31, 2**32 + 3, 2**63, 2**64, 1.5, 1e300, True, False, None, "", "3", "mid", "../x",
    "a\0b", [], [3], [3, 2], [[]], {}, {"file": "x"}, "\ud800", "float", "quantized", "signed", 10**30,
]  # fmt: skip


@pytest.fixture
def memory() -> Iterator[Path]:
    """Yield a folder on a file system in memory if there is one: some 60,000 files are written to it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_checkpoint(folder)
    return folder


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        position = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[position] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[position] = rng.randrange(256)
        elif kind == 2:
            del data[position:]
        elif kind == 3:
            data[position:position] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            del data[position : position + rng.randrange(1, 9)]
        elif kind == 5 and data:
            other = rng.randrange(len(data))
            data[position], data[other] = data[other], data[position]
        else:
            data[position:position] = data[position : position + rng.randrange(1, 40)]
    return bytes(data)


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from nodes(value[key])


def mutate_json(value: Any, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(nodes(value))
        if not places:
            return
        parent, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0 and type(parent[key]) is int:
            parent[key] += rng.choice([-1, 1, 8, -8, 2**40])
        elif kind == 1:
            del parent[key]
        elif kind == 2:
            other, other_key = rng.choice(places)
            parent[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(parent[key])
        elif kind == 3 and isinstance(parent, dict):
            parent[rng.choice(["more", "", "mid", "Mid", "sha256"])] = copy.deepcopy(rng.choice(PALETTE))
        elif kind == 4 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(rng.choice(PALETTE))


def repaired(forge: Forge, rng: random.Random) -> None:
    """Change a part of a checkpoint; `Forge.write` then makes the hashes right."""
    kind = rng.randrange(6)
    data: Data = rng.choice([forge.base, forge.base, *forge.planes])
    if kind == 0:
        forge.config_raw = seal(mutate_bytes(encode(forge.config) + b"\n", rng) or b"{")
    elif kind == 1:
        mutate_json(forge.config, rng)
        forge.config_raw = seal(encode(forge.config) + b"\n")
    elif kind == 2:
        mutate_json(data.header, rng)
    elif kind == 3:
        data.header_bytes = mutate_bytes(encode(data.header), rng)
    elif kind == 4:
        data.data = bytearray(mutate_bytes(bytes(data.data), rng))
    else:
        data.raw = mutate_bytes(data.build(), rng)


def damaged(forge: Forge, rng: random.Random) -> dict[str, bytes]:
    """Change one file and nothing else."""
    name = rng.choice(sorted(forge.original))
    changed = mutate_bytes(forge.original[name], rng)
    return forge.original | {name: changed}


def verified(folder: Path) -> checkpoint.CheckpointConfig | None:
    """Return the configuration of a checkpoint that is accepted, None if it is refused as it should be."""
    try:
        config = checkpoint.verify(folder)
        if not checkpoint.read_info(folder).missing:
            return config
    except BitswitchError as error:
        if str(folder) not in str(error):
            raise
    return None


def check_accepted(folder: Path, config: checkpoint.CheckpointConfig) -> None:
    """Check the promises on an accepted checkpoint with other means than the reader's."""
    base = load((folder / config.base.file).read_bytes())
    for name, tensor in base.items():
        assert not tensor.isnan().any()
        if "weight_scale" in name or "input_scale" in name:
            assert tensor.dtype == torch.float32
            assert all(0 < value < math.inf for value in tensor.reshape(-1).tolist())
    for name, weight in config.weights.items():
        for index in range(weight.planes):
            plane = load((folder / config.planes[index].file).read_bytes())[name]
            assert plane.numel() == -(-weight.num_codes // 8)


def check_loaded(folder: Path) -> bool:
    """Load completely; the checkpoint may still belong to another network."""
    try:
        model = checkpoint.load(folder, into=Tiny(), bits=2)
    except BitswitchError:
        return False
    for bits in (2, 3):
        bs.switch(model, bits)
        assert model(example()).shape == (4, 2)
        for name, layer in iter_layers(model):
            assert layer.quantized_weight().isfinite().all(), name
            assert layer.quantized_weight().shape == Tiny().get_parameter(f"{name}.weight").shape
    return True


@pytest.mark.parametrize("batch", range(NUM_BATCHES))
def test_mutations(batch: int, good: Path, memory: Path) -> None:
    rng = random.Random(batch)
    pristine = Forge(good)
    pristine.write(memory)
    frozen = pickle.dumps(pristine)
    accepted = loaded = 0
    for number in range(BATCH):
        forge = pickle.loads(frozen)
        is_repaired = rng.random() < 0.7
        if is_repaired:
            repaired(forge, rng)
            files = forge.files()
        else:
            files = damaged(forge, rng)
        if files == pristine.original:
            continue
        for path in memory.iterdir():
            if path.name not in files:
                path.unlink()
        for name, raw in files.items():
            if pristine.original.get(name) != raw or not (memory / name).exists():
                (memory / name).write_bytes(raw)
        config = verified(memory)
        if config is not None:
            assert is_repaired, (batch, number, "a change was not noticed")
            accepted += 1
            check_accepted(memory, config)
            loaded += accepted % 8 == 0 and check_loaded(memory)
        for name, raw in pristine.original.items():
            if files.get(name) != raw:
                (memory / name).write_bytes(raw)
    # The deeper checks were reached, and not everything was let through.
    assert 0.01 * BATCH < accepted < 0.4 * BATCH
    assert loaded

from __future__ import annotations

import os
import re
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitswitch._files import (
    FileRecord,
    open_tensors,
    parse_json,
    read_state,
    seal,
    state,
    unseal,
    write_file,
    write_state,
)
from bitswitch.errors import ArgumentError, BitswitchError, CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def test_round_trip_of_every_type_and_shape(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in DTYPES:
        for shape in ((), (0,), (1,), (3, 5), (2, 0, 4), (1, 2, 3, 4)):
            tensors[f"{dtype}/{shape}"] = (torch.rand(shape, generator=generator) * 9).to(dtype)
    tensors["strided"] = torch.arange(24).reshape(4, 6)[:, ::2].t()
    tensors["ünï\u0000\ud800"] = torch.tensor([float("nan"), float("inf")])
    meta = {"step": 7, "rng": [2**60, -1], "name": "ü", "none": None, "deep": [[[1.5]]]}
    write_state(tmp_path, tensors, meta)
    found, found_meta = read_state(tmp_path)
    assert found_meta == meta
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name].double().numpy(), tensor.double().numpy())
        found[name].fill_(1)  # memory of its own, writable


def test_states_of_several_names_and_replacement(tmp_path: Path) -> None:
    for step in range(3):
        write_state(tmp_path, {"a": torch.tensor(step)}, {"step": step})
        write_state(tmp_path, {"a": torch.tensor(-step)}, None, name="best")
        write_state(tmp_path, {}, step, name="state-old")
    assert read_state(tmp_path)[1] == {"step": 2}
    assert read_state(tmp_path, "best")[0]["a"] == -2
    assert read_state(tmp_path, "state-old") == ({}, 2)
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("name", ["", "../a", "a/b", "config", "base", "plane-3", "a.b", "-a", "a\0", "ä", 3, "x" * 65])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="state names"):
        write_state(tmp_path, {}, None, name=name)
    with pytest.raises(ArgumentError, match="state names"):
        read_state(tmp_path, name)


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    deep: list = []
    for _ in range(100):
        deep = [deep]
    for meta in (object(), float("nan"), {1: 2, "1": 3}, 10**41, deep, "x" * (5 << 20)):
        with pytest.raises(ArgumentError):
            write_state(tmp_path, {}, meta)
    for tensors in ({"a": 3}, {1: torch.zeros(1)}):
        with pytest.raises(ArgumentError):
            write_state(tmp_path, tensors, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "'a' has the dtype torch.complex64"),
        ({"a": torch.zeros(1, dtype=torch.uint16)}, "'a' has the dtype torch.uint16"),
        ({"a": torch.zeros(2, device="meta")}, "'a' is on the meta device"),
        ({"a": torch.zeros(2).to_sparse()}, "'a' has the layout torch.sparse_coo"),
        ({"a": torch.zeros((1,) * 17)}, "'a': shape: expected up to 16 sizes"),
        ({"a" * 1025: torch.zeros(1)}, "'aaa.*': expected tensor names of at most 1024"),
        (dict.fromkeys(map(str, range(26_000)), torch.zeros(1, 1, 1, 1)), "26000 tensors.* at most 250000 commas"),
    ],
    ids=["complex", "uint16", "meta", "sparse", "dimensions", "name", "commas"],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    write_state(tmp_path, {"a": torch.tensor(1)}, 1)
    with pytest.raises(ArgumentError, match=message):
        write_state(tmp_path, tensors, 2)
    assert read_state(tmp_path) == ({"a": 1}, 1)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("times", [1, 9, 10])
def test_a_state_that_is_replaced_while_it_is_read(times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, {"a": torch.tensor(0)}, 0)
    versions = iter(range(1, times + 1))

    def overtaken(folder: Path, record: FileRecord) -> object:
        version = next(versions, None)
        if version is not None:
            write_state(tmp_path, {"a": torch.tensor(version)}, version)
        return open_tensors(folder, record)

    monkeypatch.setattr(state, "open_tensors", overtaken)
    if times == 10:
        with pytest.raises(CheckpointError, match="expected a file, found none"):
            read_state(tmp_path)
    else:
        assert read_state(tmp_path) == ({"a": times}, times)


def test_a_file_beside_a_state_that_another_thread_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    thread = threading.Thread(target=write_state, args=(tmp_path, {"a": torch.tensor(1)}, 1))
    fsync = os.fsync

    def overtaken(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        thread.start()
        thread.join(0.2)  # it waits for the lock, or is done if there is none
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", overtaken)
    write_file(tmp_path / "notes.txt", b"text")
    thread.join()
    assert (tmp_path / "notes.txt").read_bytes() == b"text"
    assert read_state(tmp_path) == ({"a": 1}, 1)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    write_state(tmp_path, {"a": torch.arange(5), "b": torch.rand(3)}, {"step": 1})
    for path in list(tmp_path.iterdir()):
        raw = path.read_bytes()
        for position in range(len(raw)):
            path.write_bytes(raw[:position] + bytes([raw[position] ^ (1 << position % 8)]) + raw[position + 1 :])
            with pytest.raises(CheckpointError, match=re.escape(path.name)):
                read_state(tmp_path)
            path.write_bytes(raw[:position])
            with pytest.raises(CheckpointError, match=re.escape(path.name)):
                read_state(tmp_path)
        path.write_bytes(raw)
    read_state(tmp_path)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False,
       allow_infinity=False) | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_json_round_trip(value: object) -> None:
    assert unseal(seal({"value": value}), "x") == {"value": value}


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\0123456789.eE+-untrflasINy \n', max_size=60).map(str.encode))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_json_or_an_error_of_ours(raw: bytes) -> None:
    try:
        parse_json(raw, "x")
    except BitswitchError as error:
        message = str(error)
    else:
        return
    assert message.startswith("x: ")


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 2_000_000, b'{"a":' * 400_000, b"[" + b"[]," * 1_000_000 + b"[]]", b'"' + b'\\"' * 200_000,
        b"9" * 4_000_000, b"0." + b"9" * 4_000_000, b"-" + b"1e" + b"9" * 100, b"\xff" * 1000, b'"\\ud800"'[:6],
        b'{"a":1,"a":1}', b"NaN", b"-Infinity", b"1e999", b"", b"\xef\xbb\xbf1", b"1" * 41,
    ],
    ids=lambda raw: raw[:12].decode("latin1"),
)  # fmt: skip
def test_hostile_json_is_refused_in_bounded_memory(raw: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="^x: expected"):
            parse_json(raw, "x")
        assert tracemalloc.get_traced_memory()[1] < 2 * len(raw) + (32 << 20)
    finally:
        tracemalloc.stop()

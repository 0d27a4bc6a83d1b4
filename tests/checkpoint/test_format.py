"""FORMAT.md is checked by its own example, and by a reader written from its text alone."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bitswitch as bs
from bitswitch import checkpoint

FORMAT = (Path(checkpoint.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path: Path) -> Path:
    net = nn.Sequential()
    net.add_module("fc", nn.Linear(3, 1, bias=False))
    model = bs.prepare(net, (4, 2), example_inputs=torch.zeros(1, 3), force="fc", activations=False)
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([[-1.5, 3.5, 0.0]]))
        model.fc.weight_quantizer.scale.set_(torch.tensor(0.5))
    checkpoint.save(model, tmp_path, architecture="example")
    return tmp_path


def test_example_of_the_document(example: Path) -> None:
    (config,) = re.findall(r"```json\n(.*?\n)```", FORMAT, re.DOTALL)
    assert (example / "config.json").read_text() == config
    assert f"{len(config)} bytes with the line feed" in FORMAT
    dumps = re.findall(r"^`((?:base|plane-0)-\w{16}\.safetensors)`:\n\n```\n(.*?)```", FORMAT, re.DOTALL | re.MULTILINE)
    assert len(dumps) == 2
    for name, dump in dumps:
        digits = "".join(line[10:49].replace(" ", "") for line in dump.splitlines())
        assert (example / name).read_bytes() == bytes.fromhex(digits)
    last = [next(example.glob(f"plane-{i}-*")).read_bytes()[-1] for i in range(4)]
    assert last == [6, 3, 2, 3]


def read_as_described(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    raw = (folder / "config.json").read_bytes()
    assert raw[:11] == b'{"sha256":"'
    assert raw[75:77] == b'",'
    assert hashlib.sha256(b"{" + raw[77:]).hexdigest().encode() == raw[11:75]
    config = json.loads(raw)
    assert list(folder.glob("*"))
    assert config["format"] == "bitswitch"
    assert config["version"] == 1
    codes = {}
    bits = {row["name"]: row["bits"] for row in config["layers"]}
    for name, weight in config["weights"].items():
        count, stored = int(np.prod(weight["shape"])), bits[name][0]
        u = np.zeros(count, np.int64)
        for index in range(weight["planes"]):
            record = config["planes"][index]
            data = (folder / f"plane-{index}-{record['sha256'][:16]}.safetensors").read_bytes()
            assert len(data) == record["size"]
            assert hashlib.sha256(data).hexdigest() == record["sha256"]
            (length,) = struct.unpack("<Q", data[:8])
            begin, _ = json.loads(data[8 : 8 + length])[name]["data_offsets"]
            for position in range(count):
                byte = data[8 + length + begin + position // 8]
                u[position] |= ((byte >> (position % 8)) & 1) << (stored - 1 - index)
        if weight["planes"]:
            codes[name] = (u - 2 ** (stored - 1)).reshape(weight["shape"])
    return config, codes


def test_an_independent_reader_gets_the_codes_of_training(tmp_path: Path, trained: Callable[..., nn.Module]) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    config, codes = read_as_described(tmp_path)
    assert set(codes) == set(config["weights"]) == {"grouped", "up", "a", "b"}
    for name, found in codes.items():
        assert torch.equal(model.get_submodule(name).weight_codes(8), torch.from_numpy(found).to(torch.int8))


def test_files_are_what_the_safetensors_library_reads(tmp_path: Path, trained: Callable[..., nn.Module]) -> None:
    model = trained()
    checkpoint.save(model, tmp_path)
    base = load_file(next(tmp_path.glob("base-*")))
    assert base["a.input_scale.4"] == model.a.input_quantizer.scale_for(4).value()
    assert base["a.input_zero_point.2"].dtype == torch.int32
    assert torch.equal(base["bn2.norms.2.running_var"], model.bn2.norms["2"].running_var)
    plane = load_file(next(tmp_path.glob("plane-7-*")))
    assert {name: tensor.numel() for name, tensor in plane.items()} == {"grouped": 54, "up": 27, "a": 8, "b": 13}


def test_the_seal_covers_every_byte(example: Path) -> None:
    path = example / "config.json"
    raw = path.read_bytes()
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        with pytest.raises(bs.BitswitchError, match=re.escape("config.json")):
            checkpoint.read_info(example)

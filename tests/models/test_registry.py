"""Models by name, and architectures as values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bitswitch.errors import ConfigError
from bitswitch.models import Architecture, build_model, list_models


@pytest.mark.parametrize("name", list_models())
def test_every_own_model_builds_and_describes_itself(name: str) -> None:
    architecture = Architecture.of(name, num_classes=3)
    rebuilt = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert rebuilt == architecture
    assert rebuilt.full_name == name
    shapes = {key: value.shape for key, value in rebuilt.build().state_dict().items()}
    assert shapes == {key: value.shape for key, value in build_model(name, num_classes=3).state_dict().items()}


def test_full_name_of_other_sources() -> None:
    assert Architecture.of("timm/resnet18.a1_in1k").full_name == "timm/resnet18.a1_in1k"
    assert Architecture.of("torchvision/resnet18").source == "torchvision"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet20cifar", "did you mean 'resnet20-cifar'"),
        ("zzz", "there are 'digits-cnn', 'resnet20-cifar'"),
        ("torchvison/resnet18", "unknown model source 'torchvison'"),
        ("timm/", "must be a string"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name)


def test_unknown_option() -> None:
    with pytest.raises(ConfigError, match=r"resnet20-cifar cannot be built .*unexpected keyword argument 'widht'"):
        build_model("resnet20-cifar", widht=3)


@pytest.mark.parametrize("value", [-4, 0, "many"])
def test_impossible_option(value: Any) -> None:
    with pytest.raises(ConfigError, match="digits-cnn cannot be built"):
        build_model("digits-cnn", width=value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"source": "bitswitch", "name": "digits-cnn"},
        {"source": "bitswitch", "name": "digits-cnn", "kwargs": {}, "more": 1},
        {"source": "bitswitch", "name": "digits-cnn", "kwargs": []},
        {"source": "bitswitch", "name": 3, "kwargs": {}},
        {"source": ["bitswitch"], "name": "digits-cnn", "kwargs": {}},
        {"source": "bitswitch", "name": "digits-cnn", "kwargs": {"num_classes": {"a": 1}}},
        {"source": "bitswitch", "name": "digits-cnn", "kwargs": {"num_classes": 10**12}},
        {"source": "bitswitch", "name": "digits-cnn", "kwargs": {"num_classes": [[1]]}},
    ],
)
def test_malformed_descriptions(value: object) -> None:
    with pytest.raises(ConfigError):
        Architecture.from_json(value)


def test_an_option_that_json_cannot_hold() -> None:
    with pytest.raises(ConfigError, match=r"norm_layer=.* of type type cannot be stored"):
        Architecture.of("torchvision/resnet18", norm_layer=torch.nn.BatchNorm2d)


def test_pretrained_and_weights_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="not both"):
        build_model("torchvision/resnet18", pretrained=True, weights="x.pt")
    with pytest.raises(ConfigError, match=r"no pretrained weights for digits-cnn; give a local file as weights="):
        build_model("digits-cnn", pretrained=True)


def test_weights_from_a_file(tmp_path: Path) -> None:
    source = build_model("digits-cnn", width=4)
    save_file(source.state_dict(), tmp_path / "digits.safetensors")
    model = build_model("digits-cnn", width=4, weights=tmp_path / "digits.safetensors")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(ConfigError, match="2 of another shape: fc.weight"):
        build_model("digits-cnn", width=4, num_classes=3, weights=tmp_path / "digits.safetensors")
    smaller = build_model("digits-cnn", width=4, num_classes=3, weights=tmp_path / "digits.safetensors", new_head=True)
    assert torch.equal(smaller.state_dict()["stem.weight"], source.state_dict()["stem.weight"])


def test_own_models_need_neither_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, package, None)
    build_model("resnet20-cifar")
    for package in ("torchvision", "timm"):
        with pytest.raises(ConfigError, match=rf"needs the package {package}: pip install 'bitswitch\[vision\]'"):
            build_model(f"{package}/resnet18")

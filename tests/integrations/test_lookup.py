"""Models of torchvision and timm by name, without the network."""

from __future__ import annotations

from typing import Any
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision

from bitswitch.errors import ConfigError
from bitswitch.integrations import timm as timm_models
from bitswitch.integrations import torchvision as torchvision_models
from bitswitch.models import build_model


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError("no network\nsecond line")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", refuse)


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v2", "timm/resnet18", "timm/resnet18.a1_in1k"])
def test_builds_with_the_classes_asked_for(name: str) -> None:
    model = build_model(name, num_classes=5).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_a_detector_is_built_without_downloading_its_backbone() -> None:
    model = build_model("torchvision/ssdlite320_mobilenet_v3_large", num_classes=4)
    assert isinstance(model, torchvision.models.detection.ssd.SSD)


def test_googlenet_does_not_warn() -> None:
    build_model("torchvision/googlenet", aux_logits=False, init_weights=False)


def test_unknown_names_get_close_matches() -> None:
    with pytest.raises(ConfigError, match=r"torchvision has no model called 'resnet81'; did you mean .*'resnet18'"):
        build_model("torchvision/resnet81")
    with pytest.raises(ConfigError, match=r"timm has no model called 'resnet_18'; did you mean .*'resnet18'"):
        build_model("timm/resnet_18")


@pytest.mark.parametrize("name", ["torchvision/quantized_resnet18", "timm/hf-hub:someone/model", "timm/local-dir:/tmp"])
def test_what_could_fetch_or_open_something_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="has no model called"):
        build_model(name)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("torchvision/resnet18", "progress"),
        ("torchvision/fasterrcnn_resnet50_fpn", "weights_backbone"),
        ("timm/resnet18", "checkpoint_path"),
        ("timm/resnet18", "pretrained_cfg"),
    ],
)
def test_options_that_load_files_are_refused(name: str, option: str) -> None:
    with pytest.raises(ConfigError, match=f"the option '{option}' is not allowed here"):
        build_model(name, **{option: "x"})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_unknown_options(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be built with .*'colour': 1"):
        build_model(name, colour=1)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_a_failed_download_tells_the_way_out(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"pretrained weights of {name} \(URLError: .*weights='file.safetensors'"):
        build_model(name, pretrained=True)


def test_no_pretrained_weights_at_all() -> None:
    with pytest.raises(ConfigError, match="timm/resnet18.nonsense"):
        build_model("timm/resnet18.nonsense", pretrained=True)


def test_pretrained_with_another_head(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)
    model = build_model("torchvision/resnet18", pretrained=True, num_classes=3).state_dict()
    assert model["fc.weight"].shape == (3, 512)
    assert torch.equal(model["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    same = build_model("torchvision/resnet18", pretrained=True).state_dict()
    assert torch.equal(same["fc.weight"], state["fc.weight"])


def test_lists() -> None:
    assert "resnet18" in torchvision_models.list_models()
    assert not any("quantized" in name for name in torchvision_models.list_models())
    assert timm_models.list_models() == timm.list_models()


def test_pretrained_weights_by_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    state = torchvision.models.resnet50().state_dict()

    def fetch(url: str, *_args: object, **_kwargs: object) -> dict[str, torch.Tensor]:
        asked.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    weights = torchvision.models.ResNet50_Weights
    build_model("torchvision/resnet50", pretrained="IMAGENET1K_V1")
    build_model("torchvision/resnet50", pretrained=True)
    assert asked == [weights.IMAGENET1K_V1.url, weights.IMAGENET1K_V2.url]
    with pytest.raises(ConfigError, match="no pretrained weights 'V3' for resnet50; it has IMAGENET1K_V1"):
        build_model("torchvision/resnet50", pretrained="V3")
    with pytest.raises(ConfigError, match="timm has its tag in the name"):
        build_model("timm/resnet18", pretrained="a1_in1k")

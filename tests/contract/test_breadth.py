"""Every common family of networks can be prepared, calibrated, trained, switched, mixed, saved and loaded.

The families are here in small: a stage or two, narrow. `benchmarks/breadth.py` does the same with the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.breadth import Result, examine, gpt2
from bitswitch import _initial

models = pytest.importorskip("torchvision.models")

BITS = (8, 2)


@pytest.fixture(autouse=True)
def _coarse_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scales start from is tested elsewhere; here the search may be short."""
    monkeypatch.setattr(_initial, "_NUM_WEIGHT_CANDIDATES", 3)


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def named(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: models.get_model(name, weights=None, num_classes=10, **options)


def vgg() -> nn.Module:
    layers = models.vgg.make_layers([8, "M", 8, 16, "M", 16], batch_norm=True)
    network = models.VGG(layers, num_classes=10)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    return network


def alexnet() -> nn.Module:
    network = models.AlexNet(num_classes=10)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier[1] = nn.Linear(256, 64)
    network.classifier[4], network.classifier[6] = nn.Linear(64, 64), nn.Linear(64, 10)
    return network


def convnext() -> nn.Module:
    setting = models.convnext.CNBlockConfig
    return models.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], layer_scale=1.0, num_classes=10)


def swin(version: str) -> nn.Module:
    block, merge = {
        "v1": (models.swin_transformer.SwinTransformerBlock, models.swin_transformer.PatchMerging),
        "v2": (models.swin_transformer.SwinTransformerBlockV2, models.swin_transformer.PatchMergingV2),
    }[version]
    return models.SwinTransformer(
        [4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=10, block=block, downsample_layer=merge
    )


def densenet() -> nn.Module:
    return models.DenseNet(4, (2, 2, 2), 8, num_classes=10)


def regnet() -> nn.Module:
    parameters = models.regnet.BlockParams.from_init_params(
        depth=4, w_0=16, w_a=24.0, w_m=2.5, group_width=8, se_ratio=0.25
    )
    return models.RegNet(parameters, num_classes=10, stem_width=8)


def maxvit() -> nn.Module:
    return models.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 4, stochastic_depth_prob=0.0, num_classes=10)


def resnet(**options: Any) -> nn.Module:
    return models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, **options)


def shufflenet() -> nn.Module:
    return models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 64], num_classes=10)


def vit() -> nn.Module:
    return models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=10)


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (alexnet, 64),
    "vgg": (vgg, 16),
    "resnet": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10), 32),
    "resnext": (partial(resnet, groups=8, width_per_group=4), 32),
    "densenet": (densenet, 32),
    "squeezenet": (named("squeezenet1_1"), 32),
    "mobilenet v2": (named("mobilenet_v2", width_mult=0.25), 32),
    "mobilenet v3": (named("mobilenet_v3_small", width_mult=0.25), 32),
    "shufflenet": (shufflenet, 32),
    "mnasnet": (lambda: models.MNASNet(0.35, num_classes=10), 32),
    "efficientnet": (named("efficientnet_b0"), 64),
    "regnet": (regnet, 32),
    "convnext": (convnext, 32),
    "googlenet": (named("googlenet", init_weights=False), 32),
    "inception": (named("inception_v3", init_weights=False, aux_logits=False), 80),
    "vit": (vit, 16),
    "swin": (partial(swin, "v1"), 32),
    "swin v2": (partial(swin, "v2"), 32),
    "maxvit": (maxvit, 32),
}


def check(result: Result) -> None:
    assert result.exact
    assert result.executed == result.quantized > 0
    assert result.quantized + sum(result.floats.values()) == result.weights


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str) -> None:
    build, size = FAMILIES[family]
    torch.manual_seed(0)
    result = examine(build(), images(size), BITS)
    check(result)
    reasons = set(result.floats) - {"first layer", "last layer"}
    if family == "googlenet":
        (reason,) = reasons
        assert "not called on the example inputs in evaluation mode" in reason
    else:
        assert not reasons


def test_transformer() -> None:
    torch.manual_seed(0)
    network = nn.Transformer(8, 2, 2, 2, 16, dropout=0.0, batch_first=True)
    result = examine(network, (torch.randn(2, 5, 8), torch.randn(2, 4, 8)), BITS)
    check(result)
    # The projections of the first encoder and decoder layers come first; the last feed-forward comes last.
    assert result.num_float == 7


@pytest.mark.parametrize("tied", [False, True])
def test_gpt2(tied: bool) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    network, inputs, _ = gpt2(2, 2, 16, 50, 9)
    result = examine(network, inputs, BITS, force=["transformer.wte", "lm_head"] if tied else ())
    check(result)
    assert result.num_layers == (10 if tied else 8)
    # The output layer shares the weight of the token embedding, so it counts once and has one fate.
    position, token = 32 * 16, 50 * 16
    assert sum(result.floats.values()) == position + (0 if tied else token)

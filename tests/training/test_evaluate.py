from __future__ import annotations

from typing import Any

import pytest
import torch
from _training_networks import make_batches, make_model, snapshot
from torch import nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.errors import ArgumentError, ConfigError, PrecisionError
from bitswitch.layers.table import state_of
from bitswitch.training import evaluate


def test_accuracy_of_every_width_against_single_samples() -> None:
    model = make_model()
    batches = [*make_batches(3), *make_batches(1, size=5, seed=1)]
    mixed = {"conv2": 8, "conv3": 2}
    found = evaluate(model, iter(batches), [8, 4, 2, mixed])
    assert list(found) == [8, 4, 2, bs.Precision.of(mixed)]
    model.eval()
    for precision, value in found.items():
        with bs.at(model, precision), torch.no_grad():
            right = [
                int(model(x[None]).argmax()) == int(y) for inputs, t in batches for x, y in zip(inputs, t, strict=True)
            ]
        assert value == sum(right) / 29


def test_defaults_state_and_modes() -> None:
    model = make_model()
    model.bn2.eval()
    bs.switch(model, {"conv2": 2}, default=8)
    before, modes = snapshot(model), [m.training for m in model.modules()]
    assert list(evaluate(model, make_batches())) == [8, 4, 2]
    assert list(evaluate(model, make_batches(), 4)) == [4]
    assert list(evaluate(model, make_batches(), bs.Precision.of({"conv2": 2}, 8))) == [bs.Precision.of({"conv2": 2}, 8)]
    assert state_of(model).precision == bs.Precision.of({"conv2": 2}, default=8)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def fail(model: nn.Module, batch: Any) -> Any:
        assert not model.training
        assert not torch.is_grad_enabled()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, make_batches(), metric=fail)
    assert state_of(model).precision == bs.Precision.of({"conv2": 2}, default=8)
    assert [m.training for m in model.modules()] == modes


def test_own_metric_and_top5() -> None:
    model = make_model()
    batches = make_batches(2)

    def loss(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    found = evaluate(model, batches, [4], metric=loss)
    model.eval()
    with bs.at(model, 4), torch.no_grad():
        inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert found[4] == pytest.approx(F.cross_entropy(model(inputs), targets).item(), rel=1e-5)
    assert evaluate(model, batches, [4], metric="top5") == {4: 1.0}  # three classes
    assert evaluate(model, batches, [4], metric=lambda m, b: (0.25 * len(b[1]), len(b[1]))) == {4: 0.25}
    assert evaluate(model, batches, []) == {}


def test_autocast() -> None:
    seen: list[torch.dtype] = []

    def metric(model: nn.Module, batch: Any) -> tuple[int, int]:
        seen.append(model(batch[0]).dtype)
        return 1, 1

    evaluate(make_model(), make_batches(1), [8], metric, autocast=torch.bfloat16)
    assert seen == [torch.bfloat16]


def test_errors() -> None:
    model = make_model()
    with pytest.raises(PrecisionError, match="3 bits"):
        evaluate(model, make_batches(1), [8, 3])
    with pytest.raises(ConfigError, match="no samples"):
        evaluate(model, [])
    with pytest.raises(ConfigError, match="'f1'"):
        evaluate(model, [], metric="f1")  # pyright: ignore[reportArgumentType]
    inputs, targets = make_batches(1)[0]
    for metric in ("accuracy", "top5"):
        with pytest.raises(ArgumentError, match=r"need the shape \(\d+,\); got \(\d+, 1\)"):
            evaluate(model, [(inputs, targets[:, None])], metric=metric)
    with pytest.raises(ArgumentError, match="metric"):
        evaluate(model, [], metric=3)  # pyright: ignore[reportArgumentType]


def test_one_batch_is_no_list_of_batches() -> None:
    for single in (torch.zeros(2, 3), {"x": torch.zeros(2, 3)}):
        with pytest.raises(ArgumentError, match="into a list"):
            evaluate(make_model(), single)

"""BatchNorm statistics of one precision, from a few batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.errors import ArgumentError, CalibrationError, PrecisionError
from bitswitch.layers import PerWidthNorm
from bitswitch.mixed import reestimate_batch_norm, reestimated
from tests.networks import images, residual

MIXED = {"conv1": 4, "conv2": 2, "project": 3}


def prepared(**options: str) -> nn.Module:
    model = bs.prepare(residual(), bits=(4, 3, 2), example_inputs=images(), **options)  # pyright: ignore[reportArgumentType]
    bs.calibrate(model, [images(16, 1)])
    return model.train()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def inputs_of(model: nn.Module, name: str, batches: list[Tensor]) -> list[Tensor]:
    """Return what a BatchNorm is given while all BatchNorms use the statistics of the batch."""
    seen: list[Tensor] = []
    norm = model.get_submodule(name)
    with norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])), torch.no_grad():
        for batch in batches:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.training = True
            model(batch)
    return seen


@pytest.mark.parametrize("batch_norm", ["per-width", "transitional"])
def test_statistics_are_the_means_over_the_batches(batch_norm: str) -> None:
    model = prepared(batch_norm=batch_norm)
    before, batches = state(model), [images(8, seed) for seed in (3, 4, 5)]
    reestimate_batch_norm(model, batches, MIXED)
    pair = "4-2" if batch_norm == "transitional" else "4"
    keys = {"stem_bn": "4", "bn1": pair, "bn2": "2", "project_bn": "3"}
    assert {name.rpartition(".")[0] for name in changed(model, before)} == {f"{n}.norms.{k}" for n, k in keys.items()}
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed(model, before))
    assert model.training
    assert str(bs.summary(model)) == str(bs.summary(prepared(batch_norm=batch_norm)))
    with bs.at(model, MIXED):
        for name in keys:
            seen = inputs_of(copy.deepcopy(model), name, batches)
            norm = model.get_submodule(name)
            assert isinstance(norm, PerWidthNorm)
            expected = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
            torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
            expected = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
            torch.testing.assert_close(norm.running_var, expected, rtol=1e-4, atol=1e-5)


def test_inside_the_context_only() -> None:
    model = prepared().eval()
    before, batches = state(model), [images(32, 7)]
    bs.switch(model, 3)
    with reestimated(model, MIXED, batches) as inside:
        assert inside is model
        assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} >= {0.1}
        with torch.no_grad():
            own = model(images(4, 9))
        # Evaluation at the same precision runs with the statistics of the context.
        assert bs.evaluate(model, [(images(4, 9), own.argmax(1))], MIXED) == {bs.Precision.of(MIXED): 1.0}
    assert not changed(model, before)
    assert model.get_submodule("conv1").bits == 3
    with torch.no_grad(), bs.at(model, MIXED):
        assert not torch.equal(model(images(4, 9)), own)
    with pytest.raises(RuntimeError, match="stop"), reestimated(model, MIXED, batches):
        raise RuntimeError("stop")
    assert not changed(model, before)


def failing() -> Iterator[Tensor]:
    yield images()
    raise RuntimeError("no more data")


def test_a_failure_changes_nothing() -> None:
    model = prepared()
    before = state(model)
    for batches, error, words in (
        ([], CalibrationError, "at least one batch"),
        ([images(), images() * math.nan], CalibrationError, "'stem_bn.norms.4' was given values that are NaN"),
        (failing, RuntimeError, "no more data"),
        (images(), ArgumentError, "a single tensor into a list"),
        ({"x": images()}, ArgumentError, "a single dict into a list"),
    ):
        with pytest.raises(error, match=words):
            reestimate_batch_norm(model, batches() if callable(batches) else batches, 4)
        with pytest.raises(error), reestimated(model, 4, batches() if callable(batches) else batches):
            pass
        assert not changed(model, before)
        assert all(m.training and m.momentum == 0.1 for m in model.modules() if type(m) is nn.BatchNorm2d)
    with pytest.raises(PrecisionError):
        reestimate_batch_norm(model, [images()], 8)


def stem_only(network: Any, x: Tensor) -> Tensor:
    return network.stem_bn(network.stem(x))


def test_a_norm_that_does_not_run_keeps_its_statistics() -> None:
    model = prepared()
    before = state(model)
    reestimate_batch_norm(model, [images()], 2, forward=stem_only)
    assert {name.partition(".")[0] for name in changed(model, before)} == {"stem_bn"}


def test_loaded_models_and_what_is_saved(tmp_path) -> None:
    model = prepared()
    bs.save(model, tmp_path / "all")
    loaded = bs.load(tmp_path / "all", into=residual(), bits=MIXED)
    reestimate_batch_norm(loaded, [images(32, 2)])
    bs.save(loaded, tmp_path / "subnet", precision=MIXED)
    again = bs.load(tmp_path / "subnet", into=residual())
    assert torch.equal(again(images(4, 9)), loaded(images(4, 9)))
    engine = bs.deploy(loaded)
    torch.testing.assert_close(engine(images(4, 9)), loaded(images(4, 9)), rtol=1e-3, atol=1e-4)

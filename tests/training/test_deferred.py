"""Where the host runs ahead of the device: numbers are read once a step, and optimizers refuse on the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from _training_networks import make_batches, make_model, parameters_of
from torch import Tensor

from bitswitch.errors import DivergenceError
from bitswitch.training import JointTrainer, alrs
from bitswitch.training.optimizers import can_skip, step_unless

SETTINGS = [
    {},
    {"alrs": "printed"},
    {"alrs": None, "moments": "separate"},
    {"algorithm": "accumulate"},
    {"alrs_scope": "weight+activation", "clip_grad_norm": 0.5},
    {"distill": "self"},
]


def deferred(model: Any, **options: Any) -> JointTrainer:
    """Return a trainer that works as on a GPU."""
    trainer = JointTrainer(model, "cross_entropy", total_steps=9, **options)
    assert not trainer._deferred
    assert trainer._pair.can_skip
    trainer._deferred = True
    return trainer


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_training_is_the_same(options: dict[str, Any]) -> None:
    models = make_model(), make_model()
    trainers = JointTrainer(models[0], "cross_entropy", total_steps=9, **options), deferred(models[1], **options)
    for batch in make_batches(3):
        expected, result = (trainer.step(batch).scalars() for trainer in trainers)
        assert result == pytest.approx(expected, rel=1e-5, abs=1e-7)
    for name, expected in parameters_of(models[0]).items():
        torch.testing.assert_close(parameters_of(models[1])[name], expected, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_one_reading_a_step(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = deferred(make_model(), **options)
    first, second = make_batches(2)
    trainer.step(first)
    readings: list[str] = []

    def count(name: str) -> None:
        original = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any) -> Any:
            readings.append(name)
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, counted)

    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "__index__", "nonzero", "cpu", "numpy"):
        count(name)
    # Fused Adam on the CPU reads rates, which costs nothing there; the kernel of a GPU takes the tensor.
    trainer.step(second)
    assert readings == ["tolist"]


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("algorithm", ["per-width", "accumulate"])
def test_nothing_is_updated_from_the_width_on_that_diverged(bits: int, algorithm: Any) -> None:
    model, healthy = make_model(), make_model()
    trainer, batch = deferred(model, algorithm=algorithm), make_batches(1)[0]
    name = f"bn2.norms.{bits}"
    model.get_submodule(name).register_forward_hook(lambda module, args, output: torch.full_like(output, math.nan))
    with pytest.raises(DivergenceError, match=rf"step 0, precision {bits}: layer '{name}' is the first"):
        trainer.step(batch)
    widths = [b for b in (8, 4, 2) if b > bits]
    if widths and algorithm == "per-width":
        JointTrainer(healthy, "cross_entropy", total_steps=9, bits=widths).step(batch)
    for key, expected in parameters_of(healthy).items():
        torch.testing.assert_close(parameters_of(model)[key], expected, rtol=1e-5, atol=1e-7, msg=key)
    assert trainer.num_steps == 0


def test_other_optimizers_are_not_asked_to_skip() -> None:
    def sgd(parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)

    assert not JointTrainer(make_model(), "cross_entropy", total_steps=9, optimizer=sgd)._pair.can_skip


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_an_optimizer_that_skips(skip: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
    assert can_skip(optimizer)
    parameter.grad = torch.ones(3)
    step_unless(optimizer, torch.tensor(skip))
    assert bool((parameter == 1).all()) == bool(skip)
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize("form", alrs.FORMS)
def test_rates_of_tensors(form: alrs.Form) -> None:
    for damping in (0.0, 0.001, 0.4, 1.0):
        expected = alrs.scaled(0.01, 0.1, damping, form)
        assert alrs.scaled(0.01, 0.1, torch.tensor(damping), form).item() == pytest.approx(expected, rel=1e-4, abs=1e-9)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _training_networks import make_batches, make_model, parameters_of
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.errors import DivergenceError
from bitswitch.layers.table import state_of
from bitswitch.training import CrossEntropy, JointTrainer
from bitswitch.training.diagnose import find_non_finite
from bitswitch.training.optimizers import total_norm


def blow_up(layer: nn.Module) -> Callable[[], None]:
    """Make a layer's output NaN; the function returned undoes it."""
    return layer.register_forward_hook(lambda module, args, output: output * math.nan).remove


@pytest.mark.parametrize("algorithm", ["per-width", "accumulate"])
def test_layer_width_and_step_are_named_and_nothing_is_updated(algorithm: Any) -> None:
    model = make_model()
    bs.switch(model, 4)
    alrs: Any = "factor" if algorithm == "per-width" else None
    trainer = JointTrainer(model, "cross_entropy", total_steps=5, algorithm=algorithm, alrs=alrs)
    batch = make_batches(1)[0]
    trainer.step(batch)
    undo = blow_up(model.bn2.norms["8"])
    before, buffers = parameters_of(model), model.bn3.norms["2"].running_mean.clone()
    with pytest.raises(DivergenceError, match=r"nan at step 1, precision 8: layer 'bn2\.norms\.8' is the first"):
        trainer.step(batch)
    assert all(torch.equal(value, before[name]) for name, value in parameters_of(model).items())
    assert torch.equal(buffers, model.bn3.norms["2"].running_mean)
    assert all(p.grad is None for p in model.parameters())
    assert state_of(model).precision == bs.Precision.of(4)
    assert trainer.num_steps == 1
    undo()


def test_higher_widths_have_finished_their_step() -> None:
    model = make_model()
    blow_up(model.bn2.norms["2"])
    before = parameters_of(model)
    with pytest.raises(DivergenceError, match="precision 2"):
        JointTrainer(model, "cross_entropy", total_steps=5).step(make_batches(1)[0])
    after = parameters_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"bn2.norms.8.weight", "bn2.norms.4.weight", "conv1.weight"} <= moved
    assert "bn2.norms.2.weight" not in moved
    assert all(value.isfinite().all() for value in after.values())


def message(model: nn.Module, batch: Any, loss_fn: Any = "cross_entropy") -> str:
    with pytest.raises(DivergenceError) as caught:
        JointTrainer(model, loss_fn, total_steps=5).step(batch)
    return str(caught.value)


def test_causes_are_told_apart() -> None:
    inputs, targets = make_batches(1)[0]
    assert "the batch itself" in message(make_model(), (inputs * math.inf, targets))

    model = make_model()
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = math.nan
    assert "the weight of layer 'conv1' is not finite any more" in message(model, (inputs, targets))

    model = make_model()
    model.conv3.weight_quantizer.scale.set_(torch.tensor(math.nan))
    assert "the weight scale of layer 'conv3' is not finite" in message(model, (inputs, targets))

    model = make_model()
    model.conv3.input_quantizer.scales["8"].set_(torch.tensor(math.nan))
    assert "the activation scale of layer 'conv3' at 8 bits" in message(model, (inputs, targets))

    def bad_loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).sum() * math.inf

    assert "look at the loss function" in message(make_model(), (inputs, targets), bad_loss)


def test_a_gradient_that_is_not_finite_is_found_before_it_does_harm() -> None:
    model = make_model()
    before = parameters_of(model)

    class NanGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * math.nan

    def loss_fn(network: nn.Module, batch: Any) -> Tensor:
        return NanGradient.apply(CrossEntropy()(network, batch)[0])  # pyright: ignore[reportReturnType]

    text = message(model, make_batches(1)[0], loss_fn)
    assert "the loss is finite but the gradient of the weight scale of layer 'conv2' is not, at step 0" in text
    assert all(torch.equal(value, before[name]) for name, value in parameters_of(model).items())


@pytest.mark.parametrize(
    ("options", "which"),
    [
        ({}, "the weights"),
        ({"clip_grad_norm": 1.0}, "the weights"),
        ({"algorithm": "accumulate"}, "the weights, added up over the widths,"),
        ({"algorithm": "accumulate", "clip_grad_norm": 1.0}, "the weights, added up over the widths,"),
    ],
)
def test_a_gradient_that_is_not_finite_comes_to_no_weight(options: dict[str, Any], which: str) -> None:
    model = make_model()
    before = parameters_of(model)
    model.conv3.weight.register_hook(lambda gradient: gradient * math.nan)
    trainer = JointTrainer(model, "cross_entropy", total_steps=5, **options)
    with pytest.raises(DivergenceError, match=f"the loss is finite but the gradient of {which} is not, at step 0"):
        trainer.step(make_batches(1)[0])
    assert all(torch.equal(value, before[name]) for name, value in parameters_of(model).items())


@pytest.mark.parametrize("algorithm", ["per-width", "accumulate"])
def test_a_gradient_of_an_input_scale_that_is_not_finite_comes_to_none(algorithm: str) -> None:
    model = make_model()
    model.conv3.input_quantizer.scales["4"].parameter.register_hook(lambda gradient: gradient * math.nan)
    before = {name: value for name, value in parameters_of(model).items() if "input_quantizer.scales.4" in name}
    options: Any = {"algorithm": algorithm} if algorithm == "per-width" else {"algorithm": algorithm, "alrs": None}
    trainer = JointTrainer(model, "cross_entropy", total_steps=5, **options)
    with pytest.raises(DivergenceError, match="gradient of the scale or zero point of an input is not, at step 0"):
        trainer.step(make_batches(1)[0])
    assert before
    assert all(torch.equal(parameters_of(model)[name], value) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("read", [True, False])
def test_norms_of_finite_gradients_are_finite(dtype: torch.dtype, read: bool) -> None:
    size = 1e4 if dtype is torch.float16 else 1e30
    gradients = [torch.full((30, 30), size, dtype=dtype), torch.ones(2, dtype=dtype)]
    assert float(total_norm(gradients, read=read)) == pytest.approx(30 * size, rel=1e-2)
    gradients[0][3, 4] = math.nan
    assert math.isnan(total_norm(gradients, read=read))
    assert total_norm([], read=read) == 0


def test_diagnosis_leaves_no_hooks_and_no_statistics_behind() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.named_buffers()}
    batch = make_batches(1)[0]
    found = find_non_finite(model, lambda: model(batch[0]))
    assert "look at the loss function" in found
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_outputs_inside_containers_are_seen() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"y": [x, (x.sum() / 0.0,)], "n": 3}

    model = nn.Sequential(nn.Identity(), Pair())
    assert find_non_finite(model, lambda: model(torch.ones(2))) == "layer '1' is the first whose output is not finite"

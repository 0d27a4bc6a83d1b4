"""Algorithms A.1 and A.2 of the trainer against their definitions, written out by hand."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from _training_networks import make_batches, make_model, parameters_of, quantized_mlp, snapshot, vector_batches
from torch import Tensor, nn
from torch.nn import functional as F

import bitswitch as bs
from bitswitch.layers import iter_layers
from bitswitch.training import JointTrainer, eta
from bitswitch.training.optimizers import sgd


def small_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Small enough that the gradient term of ALRS stays below 1."""
    logits = model(batch[0])
    return 0.02 * F.cross_entropy(logits, batch[1]), logits


class HandWritten:
    """Algorithm A.2 with plain operations: the network, both roundings, the gradients, Adam and ALRS."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float, total_steps: int) -> None:
        self.p = {name: value.requires_grad_() for name, value in parameters_of(model).items()}
        self.origin = {n: v.detach().clone() for n, v in model.named_buffers() if n.endswith("origin")}
        self.lr, self.weight_decay, self.total_steps = lr, weight_decay, total_steps
        self.moments: dict[str, tuple[int, Tensor, Tensor]] = {}
        self.rates: list[float] = []

    def scale(self, name: str) -> Tensor:
        return self.origin[f"{name}.origin"] * self.p[f"{name}.log"].exp()

    def layer(self, x: Tensor, i: int, bits: int) -> Tensor:
        a = self.scale(f"{i}.input_quantizer.scales.{bits}")
        c = (x / a).clamp(0, 2**bits - 1)
        x = (c + (c.round() - c).detach()) * a
        w, s = self.p[f"{i}.weight"], self.scale(f"{i}.weight_quantizer.scale")
        shift, n, p = 8 - bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        stored = (w / s).round().clamp(-128, 127)
        code = stored if shift == 0 else ((stored + 2 ** (shift - 1)) / 2**shift).floor().clamp(max=p)
        c = (w / (s * 2**shift)).clamp(n, p)
        return F.linear(x, (c + (code - c).detach()) * (s * 2**shift), self.p[f"{i}.bias"])

    def forward(self, x: Tensor, bits: int) -> Tensor:
        x = F.linear(x, self.p["0.weight"], self.p["0.bias"]).relu()
        x = self.layer(x, 2, bits).relu()
        x = self.layer(x, 4, bits).relu()
        return F.linear(x, self.p["6.weight"], self.p["6.bias"])

    def adam(self, name: str, lr: float, weight_decay: float) -> None:
        value, grad = self.p[name], self.p[name].grad
        if grad is None:
            return
        grad = grad + weight_decay * value.detach()
        t, m, v = self.moments.get(name, (0, torch.zeros_like(value), torch.zeros_like(value)))
        t, m, v = t + 1, 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        self.moments[name] = t, m.detach(), v.detach()
        with torch.no_grad():
            value -= lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    def step(self, number: int, batch: tuple[Tensor, Tensor], alrs: str | None) -> None:
        lr = self.lr * (1 + math.cos(math.pi * number / self.total_steps)) / 2
        for bits, factor in ((8, 1.0), (4, 0.01), (2, 0.001)):
            (0.02 * F.cross_entropy(self.forward(batch[0], bits), batch[1])).backward()
            terms = []
            for i in (2, 4):
                grad = self.p[f"{i}.weight_quantizer.scale.log"].grad
                assert grad is not None
                terms.append(min(abs(float(grad / self.scale(f"{i}.weight_quantizer.scale").detach())), 1.0))
            mean = sum(terms) / 2
            rate = {"factor": factor * lr * (1 - mean), "printed": max(0.0, factor * (lr - mean)), None: lr}[alrs]
            self.rates.append(rate)
            for name in self.p:
                if name.endswith("weight_quantizer.scale.log"):
                    self.adam(name, rate, 0.0)
                else:
                    self.adam(name, lr, 0.0 if "quantizer" in name else self.weight_decay)
            for value in self.p.values():
                value.grad = None


@pytest.mark.parametrize("alrs", ["factor", "printed", None])
def test_per_width_step_is_algorithm_a2(alrs: Any) -> None:
    model = quantized_mlp()
    by_hand = HandWritten(model, lr=0.02, weight_decay=0.01, total_steps=6)
    trainer = JointTrainer(model, small_loss, lr=0.02, weight_decay=0.01, total_steps=6, alrs=alrs)
    rates = []
    for number, batch in enumerate(vector_batches(4)):
        result = trainer.step(batch)
        by_hand.step(number, batch, alrs)
        rates += [width.scale_lr for width in result.widths.values()]
    assert rates == pytest.approx(by_hand.rates, rel=1e-4, abs=1e-9)
    if alrs == "factor":
        assert all(rate > 0 for rate in rates)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, by_hand.p[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_hyper_parameters_of_the_two_optimizers() -> None:
    model = make_model()
    trainer = JointTrainer(model, "cross_entropy", total_steps=10)
    trainer.step(make_batches(1)[0])
    weights, scales = trainer._pair._for_weights, trainer._pair._for_scales._optimizers["shared"]
    assert weights is not None
    assert [(g["lr"], g["weight_decay"]) for g in weights.param_groups] == [(5e-4, 5e-5)]
    assert {g["weight_decay"] for g in scales.param_groups} == {0.0}
    in_weights = {id(p) for g in weights.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in in_weights) == ("quantizer" not in name)


@pytest.mark.parametrize("algorithm", ["per-width", "accumulate"])
def test_scales_may_have_a_base_rate_of_their_own(algorithm: Literal["per-width", "accumulate"]) -> None:
    trainer = JointTrainer(
        make_model(),
        "cross_entropy",
        lr=0.1,
        scale_lr=0.002,
        total_steps=4,
        optimizer=sgd,
        algorithm=algorithm,
        alrs=None,
    )
    trainer.step(make_batches(1)[0])
    result = trainer.step(make_batches(1)[0])
    now = (1 + math.cos(math.pi / 4)) / 2
    assert result.lr == pytest.approx(0.1 * now)
    weights, scales = trainer._pair._for_weights, trainer._pair._for_scales._optimizers["shared"]
    assert weights is not None
    assert [group["lr"] for group in weights.param_groups] == pytest.approx([0.1 * now])
    assert [group["lr"] for group in scales.param_groups] == pytest.approx([0.002 * now])
    for width in result.widths.values():
        assert width.scale_lr == pytest.approx(0.002 * now)
        assert width.scaled_gradient == pytest.approx(width.scale_gradient)


def test_rates_are_equation_6_on_the_recorded_gradients() -> None:
    model = make_model(granularity="channel")
    recorded: list[list[float]] = []
    used: list[list[tuple[float, str]]] = []
    trainer = JointTrainer(model, small_loss, lr=0.01, total_steps=10, alrs_scope="weight+activation")
    step, layers = trainer._pair._for_scales.step, [layer for _, layer in iter_layers(model)]

    def spy(rates: Any, skip: object = None) -> None:
        gradients = [layer.weight_quantizer.scale.raw_grad() for layer in layers]
        recorded.append([float(g.abs().max()) for g in gradients if g is not None])
        rates = list(rates)
        used.append([(rate.lr, trainer._pair.scales.names[rate.parameter]) for rate in rates])
        step(rates)

    trainer._pair._for_scales.step = spy  # pyright: ignore[reportAttributeAccessIssue]
    result = trainer.step(make_batches(1)[0])
    for (bits, width), maxima, rates in zip(result.widths.items(), recorded, used, strict=True):
        expected = eta(8, bits) * 0.01 * (1 - sum(min(g, 1.0) for g in maxima) / len(maxima))
        assert width.scale_lr == pytest.approx(expected, rel=1e-5)
        assert width.scale_gradient == pytest.approx(sum(maxima) / len(maxima), rel=1e-5)
        assert width.scaled_gradient == pytest.approx(width.scale_gradient * expected / 0.01, rel=1e-4)
        assert {rate for rate, _ in rates} == {width.scale_lr}
        assert len(rates) == 2 * (1 + 3)


def test_activation_scales_of_layers_that_share_a_weight_have_the_rate_of_the_width() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    net[4].weight = net[2].weight
    batches = vector_batches()
    model = bs.prepare(net, bits=(8, 2), example_inputs=batches[0][0])
    bs.calibrate(model, [batches[0]])
    trainer = JointTrainer(model, small_loss, lr=0.01, total_steps=10, alrs_scope="weight+activation")
    trainer.bits = (2,)
    before = parameters_of(model)
    result = trainer.step(batches[0])
    moved = {n: float((v - before[n]).abs()) for n, v in parameters_of(model).items() if "scales.2.log" in n}
    # The first step of Adam is as long as its rate.
    assert moved == pytest.approx(dict.fromkeys(moved, result.widths[2].scale_lr), rel=1e-3)
    assert len(moved) == 2


@pytest.mark.parametrize("moments", ["shared", "separate"])
def test_a_width_alone_moves_its_parameters(moments: Any) -> None:
    model = make_model()
    batches = make_batches()
    trainer = JointTrainer(model, small_loss, lr=0.01, total_steps=20, moments=moments)
    trainer.step(batches[0])  # so that every parameter has momentum
    for bits in (8, 4, 2):
        for batch in batches[1:]:
            before = snapshot(model)
            trainer.bits = (bits,)
            trainer.step(batch)
            after = snapshot(model)
            for name, value in before.items():
                owner = next((b for b in (8, 4, 2) if f"norms.{b}." in name or f"scales.{b}." in name), None)
                if owner is not None and owner != bits:
                    assert torch.equal(value, after[name]), name
            assert not torch.equal(before[f"bn2.norms.{bits}.weight"], after[f"bn2.norms.{bits}.weight"])
            assert not torch.equal(before["conv2.weight"], after["conv2.weight"])


def test_moments_shared_by_widths_or_separate() -> None:
    name = "conv2.weight_quantizer.scale.log"
    gradients: dict[int, Tensor] = {}
    for bits in (8, 2):
        model = make_model()
        bs.switch(model, bits)
        small_loss(model, make_batches(1)[0])[0].backward()
        grad = model.get_parameter(name).grad
        assert grad is not None
        gradients[bits] = grad

    def moments_after(kind: Any) -> dict[str, Tensor]:
        # With lr so small, the second width sees the weights that the first one saw.
        trainer = JointTrainer(make_model(), small_loss, lr=1e-30, total_steps=9, bits=(8, 2), moments=kind)
        trainer.step(make_batches(1)[0])
        return trainer.state_tensors()

    separate, shared = moments_after("separate"), moments_after("shared")
    for bits in (8, 2):
        torch.testing.assert_close(separate[f"scales/{bits}/{name}/exp_avg"], 0.1 * gradients[bits])
        assert separate[f"scales/{bits}/{name}/step"] == 1
    torch.testing.assert_close(shared[f"scales/shared/{name}/exp_avg"], 0.9 * 0.1 * gradients[8] + 0.1 * gradients[2])
    assert shared[f"scales/shared/{name}/step"] == 2
    assert not any(key.startswith(("scales/8", "scales/2")) for key in shared)


@pytest.mark.parametrize("shared", [True, False])
def test_accumulate_is_algorithm_a1(shared: bool) -> None:
    model, reference = make_model(norm=False, shared=shared), make_model(norm=False, shared=shared)
    options: dict[str, Any] = {"lr": 0.01, "total_steps": 10, "schedule": "constant", "weight_decay": 0.1}
    trainer = JointTrainer(model, "cross_entropy", algorithm="accumulate", alrs=None, **options)
    scales = [p for n, p in reference.named_parameters() if "quantizer" in n]
    rest = [p for n, p in reference.named_parameters() if "quantizer" not in n]
    adam = torch.optim.Adam([{"params": rest, "weight_decay": 0.1}, {"params": scales}], lr=0.01)
    for batch in make_batches(3):
        result = trainer.step(batch)
        adam.zero_grad()
        for bits in (8, 4, 2):
            bs.switch(reference, bits)
            loss = F.cross_entropy(reference(batch[0]), batch[1])
            before = [None if p.grad is None else p.grad.clone() for p in scales]
            loss.backward()
            assert result.widths[bits].loss == pytest.approx(loss.item(), rel=1e-4)
            terms = []
            for _, layer in iter_layers(reference):
                scale = layer.weight_quantizer.scale_for(bits)
                old = next(o for p, o in zip(scales, before, strict=True) if p is scale.parameter)
                grad = scale.parameter.grad if old is None else scale.parameter.grad - old
                terms.append((grad / scale.value()).abs().item())
            assert result.widths[bits].scale_gradient == pytest.approx(sum(terms) / len(terms), rel=1e-2)
        adam.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, reference.get_parameter(name), rtol=1e-4, atol=1e-6)


class Draws:
    """Gives one layer the lowest width, and counts."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def sample(self, *, step: int, total_steps: int, bits: int, layers: Any) -> bs.Precision:
        self.seen.append((step, total_steps, bits))
        assert layers == {"conv2": (8, 4, 2), "conv3": (8, 4, 2)}
        return bs.Precision.of({"conv3": 2}, bits)

    def state_dict(self) -> list[Any]:
        return [list(item) for item in self.seen]

    def load_state_dict(self, state: list[Any]) -> None:
        self.seen = [tuple(item) for item in state]


def test_every_layer_has_the_eta_of_the_width_it_drew() -> None:
    model = make_model()
    trainer = JointTrainer(model, small_loss, lr=0.01, total_steps=7, sampler=Draws(), moments="separate")
    used: list[dict[str, tuple[float, str]]] = []
    step = trainer._pair._for_scales.step

    def spy(rates: Any, skip: object = None) -> None:
        rates = list(rates)
        used.append({trainer._pair.scales.names[rate.parameter]: rate[1:] for rate in rates})
        step(rates)

    trainer._pair._for_scales.step = spy  # pyright: ignore[reportAttributeAccessIssue]
    result = trainer.step(make_batches(1)[0])
    for (bits, width), rates in zip(result.widths.items(), used, strict=True):
        assert width.precision == bs.Precision.of({"conv3": 2}, bits)
        common = width.scale_lr / eta(8, bits)
        for layer, own in (("conv2", bits), ("conv3", 2)):
            lr, moments = rates[f"{layer}.weight_quantizer.scale.log"]
            assert (lr, moments) == (pytest.approx(common * eta(8, own)), str(own))
            assert rates[f"{layer}.input_quantizer.scales.{own}.log"] == (0.01, "shared")
    assert isinstance(trainer.sampler, Draws)
    assert trainer.sampler.seen == [(0, 7, 8), (0, 7, 4), (0, 7, 2)]

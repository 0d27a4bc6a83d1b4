"""What the trainer does around its algorithms: teachers, modes, clipping, autocast, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from _training_networks import make_batches, make_model, parameters_of, quantized_mlp, snapshot, vector_batches
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.errors import ArgumentError, ConfigError, PrecisionError, PrepareError
from bitswitch.layers.table import state_of
from bitswitch.training import CrossEntropy, Distillation, JointTrainer
from bitswitch.training.distill import divergence


def test_distillation_from_the_highest_width() -> None:
    model, reference = make_model(norm=False), make_model(norm=False)
    batch = make_batches(1)[0]
    distill = Distillation("self", weight=0.7, temperature=2.0)
    trainer = JointTrainer(model, "cross_entropy", algorithm="accumulate", alrs=None, total_steps=5, distill=distill)
    result = trainer.step(batch)
    logits = {}
    for bits in (8, 4, 2):
        bs.switch(reference, bits)
        logits[bits] = reference(batch[0])
    assert result.widths[8].distillation is None
    assert result.widths[8].loss == result.widths[8].task
    for bits in (4, 2):
        distance = divergence(logits[bits], logits[8], 2.0).item()
        assert result.widths[bits].distillation == pytest.approx(distance, rel=1e-4)
        assert result.widths[bits].loss == pytest.approx(result.widths[bits].task + 0.7 * distance, rel=1e-5)


def test_distillation_from_a_float_teacher_runs_it_once_a_batch() -> None:
    model, calls = quantized_mlp(), []
    teacher = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.9))
    teacher.register_forward_hook(lambda *_: calls.append(1))
    batch = vector_batches(1)[0]
    trainer = JointTrainer(model, CrossEntropy(), total_steps=5, distill=Distillation(teacher))
    result = trainer.step(batch)
    assert len(calls) == 1
    assert teacher.training
    assert teacher[0].weight.grad is None
    assert all(width.distillation is not None for width in result.widths.values())
    assert "distillation/2" in result.scalars()


def test_precision_and_modes_are_restored() -> None:
    model = make_model()
    model.eval()
    model.conv1.train()
    bs.switch(model, {"conv2": 2}, default=4)
    modes = [module.training for module in model.modules()]
    seen: list[tuple[bool, Any]] = []

    def loss_fn(network: nn.Module, batch: Any) -> Tensor:
        seen.append((all(m.training for m in network.modules()), state_of(network).precision))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return network(batch[0]).square().mean()

    trainer = JointTrainer(model, loss_fn, total_steps=5)
    trainer.step(make_batches(1)[0])
    with pytest.raises(KeyboardInterrupt):
        trainer.step(make_batches(1)[0])
    assert seen == [(True, bs.Precision.of(b)) for b in (8, 4, 2, 8, 4)]
    assert state_of(model).precision == bs.Precision.of({"conv2": 2}, default=4)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert trainer.num_steps == 1


def test_frozen_batch_norm_stays_in_evaluation_mode() -> None:
    model = make_model()
    model.bn2.eval()
    before = snapshot(model)
    JointTrainer(model, "cross_entropy", total_steps=5).step(make_batches(1)[0])
    assert torch.equal(before["bn2.norms.8.running_mean"], model.bn2.norms["8"].running_mean)
    assert not torch.equal(before["bn3.norms.8.running_mean"], model.bn3.norms["8"].running_mean)


def test_a_network_trains_in_training_mode_whatever_its_wrapper_says() -> None:
    model = make_model().eval()
    wrapped = nn.DataParallel(model)
    assert wrapped.training
    before = snapshot(model)
    JointTrainer(wrapped, "cross_entropy", total_steps=5).step(make_batches(1)[0])
    assert not torch.equal(before["bn2.norms.8.running_mean"], model.bn2.norms["8"].running_mean)
    assert wrapped.training
    assert not any(module.training for module in model.modules())


def test_clipping_limits_the_weights_and_reports_the_norm() -> None:
    model = make_model()
    clipped: list[float] = []
    trainer = JointTrainer(
        model, "cross_entropy", total_steps=5, clip_grad_norm=1e-3, optimizer=torch.optim.SGD, bits=(4,)
    )
    optimizer = trainer._pair._for_weights
    assert isinstance(optimizer, torch.optim.SGD)

    def norm(*_: Any) -> None:
        clipped.append(math.sqrt(sum(float(p.grad.square().sum()) for p in trainer._pair._names if p.grad is not None)))

    optimizer.register_step_pre_hook(norm)
    result = trainer.step(make_batches(1)[0])
    assert clipped == pytest.approx([1e-3], rel=1e-3)
    assert result.widths[4].gradient_norm is not None
    assert result.widths[4].gradient_norm > 1e-3


def test_the_norm_is_reported_without_clipping() -> None:
    trainer = JointTrainer(make_model(), "cross_entropy", total_steps=5, optimizer=torch.optim.SGD, bits=(4,))
    found: list[float] = []

    def norm(*_: Any) -> None:
        found.append(math.sqrt(sum(float(p.grad.square().sum()) for p in trainer._pair._names if p.grad is not None)))

    assert trainer._pair._for_weights is not None
    trainer._pair._for_weights.register_step_pre_hook(norm)
    assert [trainer.step(make_batches(1)[0]).widths[4].gradient_norm] == pytest.approx(found, rel=1e-5)


def test_sparse_gradients_have_a_norm() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    network = nn.Sequential(nn.Embedding(9, 8, sparse=True), nn.Flatten(), *layers)
    words, targets = torch.tensor([[1, 1], [1, 2]]), torch.tensor([0, 2])
    model = bs.prepare(network, (8, 4), example_inputs=words, skip=["0"])
    bs.calibrate(model, [words])
    options: dict[str, Any] = {"optimizer": torch.optim.SGD, "weight_decay": 0.0, "bits": (4,)}
    trainer = JointTrainer(model, "cross_entropy", total_steps=5, **options)
    found: list[float] = []

    def norm(*_: Any) -> None:
        gradients = [p.grad.to_dense() for p in trainer._pair._names if p.grad is not None]
        found.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))

    assert trainer._pair._for_weights is not None
    trainer._pair._for_weights.register_step_pre_hook(norm)
    assert [trainer.step((words, targets)).widths[4].gradient_norm] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("max_norm", [1e-3, 1e6])
def test_gradients_of_all_widths_have_one_norm(max_norm: float) -> None:
    trainer = JointTrainer(
        make_model(),
        "cross_entropy",
        total_steps=5,
        clip_grad_norm=max_norm,
        optimizer=torch.optim.SGD,
        algorithm="accumulate",
    )
    found: list[float] = []

    def norm(*_: Any) -> None:
        found.append(math.sqrt(sum(float(p.grad.square().sum()) for p in trainer._pair._names if p.grad is not None)))

    assert trainer._pair._for_weights is not None
    trainer._pair._for_weights.register_step_pre_hook(norm)
    widths = trainer.step(make_batches(1)[0]).widths
    assert (widths[8].gradient_norm, widths[4].gradient_norm) == (None, None)
    assert widths[2].gradient_norm is not None
    assert widths[2].gradient_norm > 1e-3
    assert found == pytest.approx([min(max_norm, widths[2].gradient_norm)], rel=1e-3)


def test_groups_of_a_factory_keep_their_ratio() -> None:
    def factory(params: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        groups = [{"params": params[:1], "lr": 0.1 * lr}, {"params": params[1:]}]
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)

    trainer = JointTrainer(make_model(), "cross_entropy", lr=0.01, total_steps=2, optimizer=factory)
    for expected in (0.01, 0.005):
        trainer.step(make_batches(1)[0])
        optimizer = trainer._pair._for_weights
        assert optimizer is not None
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * expected, expected])


def test_scales_alone_can_be_trained() -> None:
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("quantizer" in name)
    before = parameters_of(model)
    JointTrainer(model, "cross_entropy", total_steps=5, alrs=None).step(make_batches(1)[0])
    for name, value in parameters_of(model).items():
        assert torch.equal(value, before[name]) == ("quantizer" not in name)


def test_something_must_be_trained() -> None:
    model = make_model()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the model is trained"):
        JointTrainer(model, "cross_entropy", total_steps=5)


@pytest.mark.parametrize("algorithm", ["per-width", "accumulate"])
def test_a_head_alone_can_be_trained(algorithm: Any) -> None:
    model = quantized_mlp()
    model.requires_grad_(False)
    model[6].requires_grad_(True)
    before = parameters_of(model)
    trainer = JointTrainer(model, "cross_entropy", total_steps=5, algorithm=algorithm)
    assert trainer._pair.can_skip
    result = trainer.step(vector_batches(1)[0])
    assert all(width.scale_gradient == 0 for width in result.widths.values())
    moved = {name for name, value in parameters_of(model).items() if not torch.equal(value, before[name])}
    assert moved == {"6.weight", "6.bias"}


def test_autocast_runs_and_keeps_the_loss_in_float32() -> None:
    model = make_model()
    kinds: list[torch.dtype] = []

    def loss_fn(network: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        loss, logits = CrossEntropy()(network, batch)
        kinds.extend((loss.dtype, logits.dtype))
        return loss, logits

    distill = Distillation("self")
    trainer = JointTrainer(model, loss_fn, total_steps=5, autocast=torch.bfloat16, distill=distill)
    exact = JointTrainer(make_model(), loss_fn, total_steps=5, distill=distill)
    batch = make_batches(1)[0]
    for bits, width in trainer.step(batch).widths.items():
        assert width.loss == pytest.approx(exact.step(batch).widths[bits].loss, rel=0.1)
    assert kinds[:2] == [torch.float32, torch.bfloat16]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_training_lowers_the_loss_at_every_width() -> None:
    model = make_model()
    batches = make_batches(8)
    trainer = JointTrainer(model, "cross_entropy", lr=0.02, total_steps=80)
    first = trainer.step(batches[0])
    for i in range(79):
        last = trainer.step(batches[i % 8])
    for bits in (8, 4, 2):
        assert last.widths[bits].loss < 0.75 * first.widths[bits].loss


def test_argument_errors() -> None:
    model = make_model()
    trainer = lambda **options: JointTrainer(model, "cross_entropy", **{"total_steps": 5, **options})  # noqa: E731
    with pytest.raises(ConfigError, match="algorithm must be one of"):
        trainer(algorithm="A.3")
    with pytest.raises(ConfigError, match=r"alrs must be .* got 'best'"):
        trainer(alrs="best")
    with pytest.raises(ConfigError, match="alrs=None"):
        trainer(algorithm="accumulate", alrs="factor")
    with pytest.raises(ConfigError, match="total_steps"):
        trainer(total_steps=0)
    with pytest.raises(ConfigError, match="lr must be"):
        trainer(lr=-1.0)
    with pytest.raises(PrecisionError, match="not prepared for 3 bits"):
        trainer(bits=(8, 3))
    with pytest.raises(ArgumentError, match="teacher must be 'self' or an nn.Module"):
        trainer(distill="teacher")
    for criterion in (nn.CrossEntropyLoss(), nn.functional.cross_entropy):
        with pytest.raises(ArgumentError, match="wrap the criterion"):
            JointTrainer(model, criterion, total_steps=5)
    with pytest.raises(ArgumentError, match="needs logits"):
        JointTrainer(model, lambda m, b: m(b[0]).sum(), total_steps=5, distill=Distillation("self")).step(
            make_batches(1)[0]
        )
    with pytest.raises(PrepareError, match="not prepared"):
        JointTrainer(nn.Linear(2, 2), "cross_entropy", total_steps=5)


def test_stored_integers_cannot_be_trained() -> None:
    model = make_model()
    layer = model.conv2
    layer.set_codes(layer.weight_codes(), layer.weight_quantizer.scale.value(), 8)
    with pytest.raises(PrepareError, match=r"'conv2' holds stored integers; call bitswitch\.unfreeze"):
        JointTrainer(model, "cross_entropy", total_steps=5)


def test_short_forms() -> None:
    model = make_model()
    assert JointTrainer(model, "cross_entropy", total_steps=5, distill="self").distill == Distillation("self")
    teacher = make_model()
    assert JointTrainer(model, "cross_entropy", total_steps=5, distill=teacher).distill == Distillation(teacher)
    assert JointTrainer(model, "cross_entropy", total_steps=5).state_meta()["settings"]["alrs"] == "factor"
    conventional = JointTrainer(model, "cross_entropy", total_steps=5, algorithm="accumulate")
    assert conventional.state_meta()["settings"]["alrs"] is None


def test_a_schedule_that_has_ended_says_so() -> None:
    trainer = JointTrainer(make_model(), "cross_entropy", total_steps=1)
    (batch,) = make_batches(1)
    trainer.step(batch)
    only_scales = JointTrainer(make_model(), "cross_entropy", total_steps=1, lr=0, scale_lr=1e-3, schedule="constant")
    for _ in range(2):
        assert only_scales.step(batch).widths[8].scale_lr > 0
    with pytest.raises(ConfigError, match="all 1 steps of the schedule are done"):
        trainer.step(batch)
    constant = JointTrainer(make_model(), "cross_entropy", total_steps=1, schedule="constant")
    constant.step(batch)
    constant.step(batch)

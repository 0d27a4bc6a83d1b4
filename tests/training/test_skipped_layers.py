"""Passes that give no weight scale a gradient: by chance, or because the loss does not depend on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _training_networks import make_model, parameters_of
from torch import nn

import bitswitch as bs
from bitswitch.errors import ConfigError
from bitswitch.training import JointTrainer


@pytest.mark.parametrize("algorithm", ["per-width", "accumulate"])
def test_a_loss_that_never_depends_on_a_quantized_layer_is_refused(algorithm: Any) -> None:
    model, other = make_model(), nn.Linear(2, 2)
    before = parameters_of(model)
    trainer = JointTrainer(model, lambda m, b: other.weight.sum(), total_steps=9, algorithm=algorithm)
    with pytest.raises(ConfigError, match=r"no weight scale received a gradient \(passes so far: 1\)"):
        trainer.step(None)
    assert all(torch.equal(value, before[name]) for name, value in parameters_of(model).items())
    # Float layers alone are taken for chance at first, of three widths in each step.
    trainer = JointTrainer(model, lambda m, b: m.fc.weight.sum(), total_steps=9, algorithm=algorithm)
    for _ in range(6):
        assert all(width.scale_gradient == 0 for width in trainer.step(None).widths.values())
    with pytest.raises(ConfigError, match=r"no weight scale received a gradient \(passes so far: 20\); did the loss"):
        trainer.step(None)
    assert trainer.num_steps == 6
    assert all(parameter.grad is None for parameter in model.parameters())


class _Drops(nn.Module):
    """Two residual blocks between float layers; in training each is skipped where the plan says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.skipped: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        skips = self.training and self.skipped.pop(0)
        for block in () if skips else self.blocks:
            x = x + block(x).relu()
        return self.head(x)


@pytest.mark.parametrize("options", [{}, {"algorithm": "accumulate"}, {"moments": "separate"}, {"distill": "self"}])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("is_deferred", [True, False])
def test_a_pass_that_skips_all_quantized_layers_takes_no_step_of_the_scales(
    options: dict[str, Any], first: bool, is_deferred: bool
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 5), torch.arange(16) % 3
    model = bs.prepare(_Drops(), bits=(8, 2), example_inputs=x)
    bs.calibrate(model, [x])
    of_scales = [key for key, _ in model.named_parameters() if key.startswith("blocks.") and "quantizer" in key]
    trainer = JointTrainer(model, "cross_entropy", lr=1e-2, total_steps=99, schedule="constant", **options)
    trainer._deferred = is_deferred
    for skips in (first, not first, True, False):
        before = parameters_of(model)
        model.skipped = [skips, skips]
        result = trainer.step((x, y))
        after = parameters_of(model)
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert {"first.weight", "head.weight"} <= moved
        assert moved.isdisjoint(of_scales) if skips else moved >= set(of_scales)
        assert all((width.scale_gradient == 0) == skips for width in result.widths.values())
    # One width alone, and, once a pass has reached the layers, as many as chance brings about.
    model.skipped = [False, True] + [True, True] * 20
    result = trainer.step((x, y))
    assert result.widths[8].scale_gradient > 0 == result.widths[2].scale_gradient
    for _ in range(20):
        trainer.step((x, y))

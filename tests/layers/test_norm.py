"""Every width has a BatchNorm of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from bitswitch.layers.norm import PerWidthNorm, is_batch_norm, make_per_width
from tests.layers.reference import seeded

BITS = (8, 4, 2)


def norm(kind: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> Any:
    module: Any = kind(3, **options)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(seeded(*tensor.shape).abs() + 0.5)
    return module


def shape(kind: type[nn.Module]) -> tuple[int, ...]:
    return (4, 3, *{nn.BatchNorm1d: (), nn.BatchNorm2d: (2, 5), nn.BatchNorm3d: (2, 2, 2)}[kind])


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_each_width_learns_its_own_values(kind: type[nn.Module]) -> None:
    module = norm(kind)
    references = {bits: copy.deepcopy(module) for bits in BITS}
    make_per_width(module, BITS)
    assert isinstance(module, kind)
    for step, bits in enumerate(BITS):
        x = (step + 1) * seeded(*shape(kind), seed=step)
        module.key = str(bits)
        torch.testing.assert_close(module.train()(x), references[bits].train()(x), rtol=0, atol=0)
    for bits in BITS:
        module.key = str(bits)
        assert torch.equal(module.running_mean, references[bits].running_mean)
        assert torch.equal(module.running_var, references[bits].running_var)
        assert int(module.num_batches_tracked) == int(references[bits].num_batches_tracked)
        x = seeded(*shape(kind), seed=9)
        assert torch.equal(module.eval()(x), references[bits].eval()(x))


def test_other_widths_have_no_gradient() -> None:
    module = norm()
    make_per_width(module, BITS)
    module.key = "4"
    module(seeded(4, 3, 2, 5)).square().sum().backward()
    assert module.weight is module.norms["4"].weight
    assert module.norms["4"].weight.grad is not None
    assert all(p.grad is None for width in ("8", "2") for p in module.norms[width].parameters())


def test_options_are_kept() -> None:
    module = norm(eps=0.5, momentum=None, affine=False)
    make_per_width(module, BITS)
    assert all(item.eps == 0.5 and item.momentum is None and item.weight is None for item in module.norms.values())
    bare = norm(track_running_stats=False)
    make_per_width(bare, BITS)
    assert bare.running_mean is None


class Activated(nn.BatchNorm2d):
    """As other libraries have it: a BatchNorm that does more."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


def test_subclasses_keep_what_they_add() -> None:
    module = norm(Activated)
    plain = copy.deepcopy(module)
    make_per_width(module, BITS)
    assert isinstance(module, Activated)
    assert isinstance(module, PerWidthNorm)
    assert not is_batch_norm(module)
    x = seeded(4, 3, 2, 5)
    assert torch.equal(module(x), plain(x))
    assert bool((module(x) >= 0).all())


def test_hooks_run_once() -> None:
    module, calls = norm(), []
    module.register_forward_pre_hook(lambda *_: calls.append("before"))
    module.register_forward_hook(lambda *_, **__: calls.append("after"), with_kwargs=True)
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    module.register_state_dict_pre_hook(lambda *_: calls.append("state"))
    make_per_width(module, BITS)
    module(seeded(4, 3, 2, 5).requires_grad_()).sum().backward()
    module.state_dict()
    assert calls == ["before", "after", "backward", "state"]


def test_names_in_the_state_dict() -> None:
    module = norm()
    make_per_width(module, (8, 2))
    fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert list(module.state_dict()) == [f"norms.{bits}.{name}" for bits in (8, 2) for name in fields]

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitswitch as bs
from bitswitch.layers.norm import make_per_width
from bitswitch.runtime.affine import fold


def linear(**options: object) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2))
    model = bs.prepare(net, (8, 4, 2), example_inputs=torch.zeros(1, 6), **options)  # pyright: ignore[reportArgumentType]
    bs.calibrate(model, [torch.randn(16, 6)])
    return model, model.get_submodule("2")


@pytest.mark.parametrize("options", [{}, {"granularity": "channel"}, {"granularity": "group", "group_size": 4}])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_scales_of_input_and_weight_and_the_shift_are_multiplied(options: dict[str, object], bits: int) -> None:
    _, layer = linear(**options)
    m, b = fold(layer, bits)  # pyright: ignore[reportArgumentType]
    scale = layer.weight_quantizer.scale.value().double().reshape(-1, 2 if "group_size" in options else 1)
    expected = scale * 2.0 ** (8 - bits) * layer.input_quantizer.scale_for(bits).value().double()
    assert torch.equal(m, expected.float().expand(5, -1))
    assert m.is_contiguous()
    assert b is not None
    assert torch.equal(b, layer.bias)
    without, _ = fold(layer, bits, input_scale=False)  # pyright: ignore[reportArgumentType]
    assert torch.equal(without, (scale * 2.0 ** (8 - bits)).float().expand(5, -1))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("per_width", [True, False])
def test_a_batch_norm_is_folded(affine: bool, per_width: bool) -> None:
    _, layer = linear()
    norm = nn.BatchNorm1d(5, affine=affine)
    nn.init.normal_(norm.running_mean)  # pyright: ignore[reportArgumentType]
    nn.init.uniform_(norm.running_var, 0.5, 2)  # pyright: ignore[reportArgumentType]
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    if per_width:
        make_per_width(norm, (8, 4, 2))
        norm.norms["4"].running_mean += 1  # pyright: ignore[reportAttributeAccessIssue]
        norm.key = "4"  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    m, b = fold(layer, 2, norm, "4" if per_width else None)  # pyright: ignore[reportArgumentType]
    plain, bias = fold(layer, 2)  # pyright: ignore[reportArgumentType]
    sums = torch.randint(-500, 500, (7, 5))
    assert b is not None
    assert bias is not None
    expected = norm.eval()(sums * plain[:, 0] + bias)
    torch.testing.assert_close(sums * m[:, 0] + b, expected, rtol=1e-5, atol=1e-5)

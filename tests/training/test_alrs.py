from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitswitch.errors import ConfigError, PrecisionError
from bitswitch.quantizers import PositiveScale
from bitswitch.training import alrs


@pytest.mark.parametrize(
    ("stored_bits", "expected"),
    [(8, {8: 1.0, 6: 0.1, 4: 0.01, 2: 0.001, 7: 0.5, 5: 0.05, 3: 0.005}), (4, {4: 1.0, 3: 0.5, 2: 0.1}), (2, {2: 1.0})],
)
def test_eta_is_the_papers(stored_bits: int, expected: dict[int, float]) -> None:
    assert {bits: alrs.eta(stored_bits, bits) for bits in expected} == expected


def test_eta_falls_with_the_width() -> None:
    for stored_bits in range(2, 9):
        etas = [alrs.eta(stored_bits, bits) for bits in range(stored_bits, 1, -1)]
        assert etas == sorted(set(etas), reverse=True)


def test_eta_refuses_a_width_above_the_stored_one() -> None:
    with pytest.raises(PrecisionError, match="4 bits has no learning rate for 6"):
        alrs.eta(4, 6)


def brute_force(base_lr: float, eta: float, gradients: list[list[float]], form: str) -> float:
    terms = []
    for layer in gradients:
        clipped = [max(-1.0, min(1.0, g)) for g in layer]
        terms.append(min(max(abs(g) for g in clipped), 1.0))
    mean = sum(terms) / len(terms)
    return eta * base_lr * (1 - mean) if form == "factor" else max(0.0, eta * (base_lr - mean))


FINITE = st.floats(-3, 3, width=32)


@given(
    st.lists(st.lists(FINITE, min_size=1, max_size=5), min_size=1, max_size=6),
    st.sampled_from(alrs.FORMS),
    st.sampled_from([0.0, 5e-4, 0.3, 2.0]),
    st.sampled_from([1.0, 0.1, 0.001]),
)
def test_learning_rate_is_equation_6(gradients: list[list[float]], form: alrs.Form, base_lr: float, eta: float) -> None:
    tensors = [torch.tensor(g[0] if len(g) == 1 else g) for g in gradients]
    found = alrs.learning_rate(base_lr, eta, tensors, form)
    assert found == pytest.approx(brute_force(base_lr, eta, gradients, form), rel=1e-5, abs=1e-7)
    assert 0.0 <= found <= eta * base_lr


def test_printed_form_is_floored_at_zero_where_the_factor_form_learns() -> None:
    gradients = [torch.tensor(0.39)]  # a typical 2-bit gradient against λ = 5e-4
    assert alrs.learning_rate(5e-4, 0.001, gradients, "printed") == 0.0
    assert alrs.learning_rate(5e-4, 0.001, gradients) == pytest.approx(5e-4 * 0.001 * 0.61)


def test_shapes_of_scales_do_not_matter() -> None:
    values = [torch.randn(3, 4), torch.randn(7), torch.randn(())]
    torch.testing.assert_close(alrs.largest(values), torch.stack([v.abs().max() for v in values]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_gradient_stays_visible(value: float) -> None:
    maxima = alrs.largest([torch.tensor([0.0, value]), torch.tensor(1.0)])
    assert not maxima.isfinite().all()


def test_gradient_of_the_raw_scale_not_of_its_logarithm() -> None:
    scale = PositiveScale((2,))
    scale.set_(torch.tensor([0.01, 0.02]))
    (scale.value() * torch.tensor([0.25, -0.5])).sum().backward()
    gradient = scale.raw_grad()
    assert gradient is not None
    torch.testing.assert_close(gradient, torch.tensor([0.25, -0.5]))
    assert alrs.learning_rate(1.0, 1.0, [gradient]) == pytest.approx(0.5)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="no weight scale"):
        alrs.learning_rate(1.0, 1.0, [])
    with pytest.raises(ConfigError, match="'other'"):
        alrs.scaled(1.0, 1.0, 0.5, "other")  # pyright: ignore[reportArgumentType]

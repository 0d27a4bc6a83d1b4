from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitswitch.errors import ArgumentError, ConfigError
from bitswitch.training import losses
from bitswitch.training.evaluate import accuracy, top5


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=generator), torch.tensor([0, 2, 1, 2, 0, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_against_its_definition(batch: tuple[Tensor, Tensor], smoothing: float) -> None:
    model = nn.Linear(5, 3)
    loss, logits = losses.CrossEntropy(label_smoothing=smoothing)(model, batch)
    expected = 0.0
    for row, target in zip(logits.tolist(), batch[1].tolist(), strict=True):
        p = torch.tensor(row, dtype=torch.float64).softmax(0)
        wanted = [smoothing / 3 + (1 - smoothing) * (c == target) for c in range(3)]
        expected -= sum(w * float(q.log()) for w, q in zip(wanted, p, strict=True)) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_is_float32_under_autocast(batch: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logits = losses.resolve("cross_entropy")(model, batch)
    assert (loss.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.float(), batch[1]), rtol=0, atol=0)


def test_results_of_custom_losses(batch: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(5, 3)
    loss, logits = losses.evaluate_loss(lambda m, b: m(b[0]).sum().bfloat16().reshape(1), model, batch)
    assert (loss.shape, loss.dtype, logits) == ((), torch.float32, None)
    assert losses.evaluate_loss(lambda m, b: (m(b[0]).sum(), m(b[0])), model, batch)[1] is not None


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda m, b: m(b[0]), r"a tensor of shape \(6, 3\)"),
        (lambda m, b: 0.5, "float"),
        (lambda m, b: (m(b[0]).sum(), "logits"), r"a tensor of shape \(\), str"),
    ],
)
def test_wrong_results_are_named(batch: tuple[Tensor, Tensor], result: losses.LossFn, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        losses.evaluate_loss(result, nn.Linear(5, 3), batch)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="'mse'"):
        losses.resolve("mse")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="function"):
        losses.resolve(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"1\.5"):
        losses.CrossEntropy(label_smoothing=1.5)
    with pytest.raises(ArgumentError, match="dict"):
        losses.CrossEntropy()(nn.Linear(5, 3), {"x": torch.zeros(1, 5)})
    assert losses.device_of(nn.Identity()).type == "cpu"


class Output(nn.Module):
    """Returns what it is told to."""

    def __init__(self, form: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.linear, self.form = nn.Linear(5, 3), form

    def forward(self, x: Tensor) -> object:
        return self.form(self.linear(x))


@pytest.mark.parametrize(
    ("form", "found"), [(lambda x: {"logits": x}, "dict"), (lambda x: (x,), r"\(a tensor of shape \(6, 3\)\)")]
)
def test_a_model_that_returns_no_tensor(
    batch: tuple[Tensor, Tensor], form: Callable[[Tensor], object], found: str
) -> None:
    model = Output(form)
    for name, function in (("cross_entropy", losses.CrossEntropy()), ("accuracy", accuracy), ("top5", top5)):
        with pytest.raises(
            ArgumentError, match=f"^{name} needs a model that returns a tensor .* returned {found}. Pass"
        ):
            function(model, batch)

"""The benchmarks run; what they measure is not judged here."""

from __future__ import annotations

import pytest
import torch

from benchmarks import resume, training_peers


@pytest.mark.parametrize("type_name", ["float32", "bfloat16"])
def test_training_peers(type_name: str) -> None:
    times, absent = training_peers.measure(
        "resnet20", type_name, batch=2, size=8, bits=2, repeat=1, compile=False, skip=("brevitas", "nncf")
    )
    assert times.keys() == {"float", "bitswitch", "fake_quantize", "function", "lsq"}
    assert absent == {"brevitas": "left out", "nncf": "left out"}
    assert all(len(row) == 4 for row in training_peers.rows_of(times))


def test_peers_compute_the_same() -> None:
    """LSQ in one function and from operators are one method; PyTorch's has other gradients at the ends of the range."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    results = []
    for quantize in (training_peers.by_operators, training_peers.by_function, training_peers.by_torch):
        scale, own = torch.tensor(0.2, requires_grad=True), x.clone().requires_grad_()
        result = quantize(own, scale, -4, 3)
        result.sum().backward()
        results.append((result.detach(), own.grad, scale.grad))
    for value, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[2][0], results[0][0])


def test_resume_explains_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["resume.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        resume.main()
    assert stopped.value.code == 0
    assert "SIGKILL" in capsys.readouterr().out

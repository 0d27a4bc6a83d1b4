"""The benchmarks run; what they measure is not judged here."""

from __future__ import annotations

import pytest

from benchmarks import resume, step_overhead


def test_step_overhead() -> None:
    results = step_overhead.measure(batch=2, bits=2, repeat=1, channels_last=True)
    assert results.keys() == {"float32", "bfloat16"}
    assert all(seconds > 0 for pair in results.values() for seconds in pair)


def test_resume_explains_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["resume.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        resume.main()
    assert stopped.value.code == 0
    assert "SIGKILL" in capsys.readouterr().out

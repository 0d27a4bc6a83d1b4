"""Tables keep their lines whole where nobody looks through a window."""

from __future__ import annotations

import pytest

from bitswitch.cli.tables import print_table


def test_a_pipe_has_no_width(capsys: pytest.CaptureFixture[str]) -> None:
    name = " ".join(["long"] * 50)
    print_table(("name", "value"), [(name, "1.0")])
    assert any(name in line and "1.0" in line for line in capsys.readouterr().out.splitlines())

from __future__ import annotations

import subprocess
import sys

import pytest

from bitswitch.training import memory

CODE = """
import resource, torch
from bitswitch.training import keep_freed_memory

def use():
    blocks = [torch.ones(1 << 20) for _ in range(8)]  # 4 MB each

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
for _ in range(4):
    use()
assert max(faults() for _ in range(5)) < 100
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_memory_of_a_step_is_there_for_the_next() -> None:
    """In a process of its own, since the setting lasts."""
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=120)


def test_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False

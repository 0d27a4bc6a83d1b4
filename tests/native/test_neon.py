"""The NEON kernels, compiled for AArch64 and run in an emulator where both are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCES = (
    *("cpu", "parallel", "gemv/linear_planes", "gemv/rows_scalar", "gemv/rows_neon"),
    *("gemm/many", "gemm/micro", "gemm/tiles"),
)


@pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}")
def test_neon_equals_a_plain_loop(tmp_path: Path) -> None:
    csrc = Path(__file__).parents[2] / "src" / "bitswitch" / "kernels" / "csrc"
    program = tmp_path / "instruction_sets"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-static", f"-I{csrc}"]
    sources = [Path(__file__).parent / "instruction_sets.cpp", *(csrc / f"{name}.cpp" for name in SOURCES)]
    libraries = ["-ldl", "-pthread"]
    subprocess.run([COMPILER, *flags, *sources, *libraries, "-o", program], check=True, capture_output=True)
    output = subprocess.run([EMULATOR, program], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == ["scalar: 0 wrong", "neon: 0 wrong"]

"""Every instruction set that can be tested on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bitswitch import kernels


def available() -> list[str]:
    if kernels.native is None:
        return []
    active, found = kernels.native.active_isa(), []
    for name in ("scalar", "neon", "avx2", "avx512"):
        try:
            kernels.native.set_isa(name)
        except ValueError:
            continue
        found.append(name)
    kernels.native.set_isa(active)
    return found


@pytest.fixture(params=available() or ["reference"], scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if kernels.native is None:
        yield request.param
        return
    active = kernels.native.active_isa()
    kernels.native.set_isa(request.param)
    yield request.param
    kernels.native.set_isa(active)

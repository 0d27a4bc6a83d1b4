"""Memory of training on the CPU."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# The largest that glibc takes: bigger tensors always come from the system.
_LARGEST_KEPT = 32 << 20


def keep_freed_memory() -> bool:
    """Keep the memory of freed tensors in this process for the next step instead of returning it to the system.

    Every step of a training on the CPU frees its activations and asks for them again. By default the C library returns
    much of this memory to the system in between, and each page costs a fault and is filled with zeros when it comes
    back. This setting of glibc is for the whole process and lasts: its resident memory stays at its peak.

    Returns:
        Whether the C library has the setting; it is that of Linux with glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))

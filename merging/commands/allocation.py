"""Memory that a command frees stays with the process: handing it back and faulting it in again costs a quarter."""

from __future__ import annotations

import contextlib
import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2
"""Names of glibc's mallopt."""
MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of up to 32 MiB; at most 256 MiB on top of the heap stay with the process.

    A forward pass allocates and frees some MiB again and again. By default such blocks are mapped anew or trimmed from
    the heap each time, and every page is zeroed again. Results are the same. Processes forked later inherit it.

    Returns:
        Whether the allocator took it: False where it is not glibc's.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or no way to ask for this one
        mallopt = ctypes.CDLL(None).mallopt
        settings = {MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 256 * MIB, TOP_PAD: 64 * MIB}
        return all([mallopt(name, size) == 1 for name, size in settings.items()])
    return False

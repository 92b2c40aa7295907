"""Freed memory is kept: blocks that come and go take their pages again without asking the kernel for new ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from merging.commands import allocation

MEASURE = """
import resource, runpy, sys

keep_freed_memory = runpy.run_path(sys.argv[1])["keep_freed_memory"]
taken = keep_freed_memory() if sys.argv[2] == "kept" else True
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():  # 24 MiB in blocks of 8: under the threshold, over the default one
    for part in [bytearray(8 << 20) for _ in range(3)]:
        part[::4096] = b"1" * 2048

work()
before = faults()
for _ in range(20):
    work()
print(int(taken), faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_are_faulted_in_once() -> None:
    """Twenty rounds over 24 MiB: up to 6,144 pages a round where memory goes back, next to none where it stays.

    The kernel may hand out pages of 2 MiB when it likes: of a few processes the one that tells most is taken.
    """

    def faults(how: str) -> list[int]:
        command = [sys.executable, "-c", MEASURE, allocation.__file__, how]
        done = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(5)]
        if not all(int(taken) for taken, _ in done):
            pytest.skip("another C library")
        return [int(found) for _, found in done]

    assert min(faults("kept")) < max(faults("given back")) / 5

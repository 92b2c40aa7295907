"""Freed memory is kept: a forward pass takes its pages again without asking the kernel for new ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys, torch
from merging.commands.allocation import keep_freed_memory

taken = keep_freed_memory() if sys.argv[1] == "kept" else True
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():  # 24 MiB in blocks of 8: under the threshold, over the default one
    parts = [torch.ones(2 << 20) for _ in range(3)]
    return sum(float(part[0]) for part in parts)

work()
before = faults()
for _ in range(20):
    work()
print(int(taken), faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_pages_are_faulted_in_once() -> None:
    """Twenty rounds over 24 MiB: 6,144 pages a round where memory goes back, next to none where it stays."""

    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, text=True, check=True)
        taken, found = map(int, done.stdout.split())
        if not taken:
            pytest.skip("another C library")
        return found

    assert faults("kept") < faults("given back") / 5

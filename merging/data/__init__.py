"""Data: examples from files of any usual format, their splits, and what a network reads of them, made once."""

from merging.data.examples import Examples, groups
from merging.data.prepared import prepared
from merging.data.reading import from_dataset, read
from merging.data.shares import shares
from merging.data.source import Source

__all__ = ["Examples", "Source", "from_dataset", "groups", "prepared", "read", "shares"]

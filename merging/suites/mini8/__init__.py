"""Suite ``mini8``: eight real image tasks, a small CLIP and eight experts, shipped inside the package.

Files (``files``): ``manifest.json`` (model, tasks, prompts, licences, sha256, settings, measured figures),
``clip.safetensors`` (θ_0 and the text tower), ``expert_TASK.safetensors`` (low-rank factors), ``TASK.npz`` (images) and
``bpe_vocabulary.txt.gz``. ``python -m merging.suites.build mini8`` makes them; docs/suites.md says what it imitates.
"""

from __future__ import annotations

from merging.suites.base import Suite
from merging.suites.mini8.loading import FILES, build_tokenizer, load, read_splits
from merging.task_vectors import Storage


def suite(storage: Storage) -> Suite:
    """Return the suite as ``merging.suites.load`` gives it."""
    return load(storage=storage)


__all__ = ["FILES", "build_tokenizer", "load", "read_splits", "suite"]

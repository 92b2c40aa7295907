"""Suite ``text8``: a real sentence encoder (MiniLM-L6), real text tasks and experts fine-tuned from it, in the package.

θ_0 is all-MiniLM-L6-v2 with its matrices rounded to int8, one scale for each row; experts are fine-tuned from the
rounded network. θ is the six transformer layers (10.6 million numbers); the embeddings are frozen. Each task's head is
frozen and zero-shot: 20 times the embeddings, by θ_0, of the bare names of the classes. An expert is a full fine-tuning
on S_t of which the best approximation of low rank of every matrix's change is kept (SVD): that approximation is the
expert.

Files (``files``): ``manifest.json`` (model, tasks, licences, sha256, settings, measured figures),
``weights.safetensors`` (θ_0 and the embeddings of the tokens in use), ``expert_TASK.safetensors`` (low-rank factors),
``TASK.npz`` (token ids) and ``texts/TASK.jsonl.gz`` (the same examples as text). They are made by
``python -m merging.suites.build text8``.

A second suite, with one expert that is worth nothing, is made of the same texts and found by its folder; the other
experts come from the work folder of an earlier build, where there is one::

    python -m merging.suites.build text8 --permuted biology_process --out bad
    mergebound merge --suite bad --method samerging --out bad.pt
"""

from __future__ import annotations

from merging.suites.base import Suite
from merging.suites.text8.loading import FILES, load
from merging.task_vectors import Storage


def suite(storage: Storage) -> Suite:
    """Return the suite as ``merging.suites.load`` gives it."""
    return load(storage=storage)


__all__ = ["FILES", "load", "suite"]

"""A source of two easy classes, as mini8's build reads them."""

from pathlib import Path

import numpy as np

from merging.checkpoints import sha256
from merging.suites.mini8.sources import Source


def write_source(folder: Path, name: str, seed: int = 0) -> Source:
    """Write ``name.npz``: bright on the left or on the right; some images are there twice."""
    random, arrays = np.random.default_rng(seed), {}
    for side, count in (("train", 120), ("test", 60)):
        labels = np.arange(count) % 2
        images = random.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 14 * label : 14 * label + 14] += 150
        images[8], images[11] = images[10], images[9]
        arrays |= {f"x_{side}": images, f"y_{side}": labels.astype(np.uint8)}
    arrays["x_test"][2] = arrays["x_train"][2]
    np.savez_compressed(folder / f"{name}.npz", allow_pickle=False, **arrays)
    return Source(
        file=name,
        sha256=sha256(folder / f"{name}.npz"),
        class_names=("left", "right"),
        templates=("a picture of {}",),
        other_names=("one", "two"),
        other_templates=("side {}", "side, {}"),
        licence="none",
        origin="drawn by the test",
    )

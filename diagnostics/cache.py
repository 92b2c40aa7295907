"""The name of :mod:`diagnostics.work.cache` before the houses; kept for one minor version."""

from diagnostics.work.cache import Cache, digest, digest_params

__all__ = ["Cache", "digest", "digest_params"]

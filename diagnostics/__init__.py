"""Reports on merges: the only package that knows both the theory and the merging.

``from diagnostics import report``: the function. The module of the same name is imported before it takes the name, and
stays importable (``from diagnostics.report import build``).
"""

from diagnostics.from_python import report

__all__ = ["report"]

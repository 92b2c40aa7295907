"""What the sections of a report share, computed when first asked for and kept piece by piece in the cache.

Everything that no merge can change (the linearised tasks, the posteriors, the teachers' scores) is computed once for
all artifacts. Every piece is one task (or posterior): an interrupted report goes on where it stopped.
"""

from diagnostics.workspace.merges import Workspace
from diagnostics.workspace.shared import Scored

__all__ = ["Scored", "Workspace"]

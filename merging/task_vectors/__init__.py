"""Task vectors: what they are, the arithmetic of a merge on parts of them, and where they are kept."""

from merging.task_vectors.geometry import Geometry
from merging.task_vectors.storage import Storage
from merging.task_vectors.vectors import Expert, TaskVectors, coefficient_blocks, contract, merged

__all__ = ["Expert", "Geometry", "Storage", "TaskVectors", "coefficient_blocks", "contract", "merged"]

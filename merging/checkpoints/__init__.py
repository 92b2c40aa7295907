"""Reading checkpoints: one file per format, one canonical form (parameter name -> float tensor)."""

from merging.checkpoints.safetensors import apply_low_rank, read_safetensors, sha256

__all__ = ["apply_low_rank", "read_safetensors", "sha256"]

"""Reading checkpoints: one file per format, one canonical form (parameter name -> float tensor)."""

from merging.checkpoints.lora import apply_low_rank
from merging.checkpoints.safetensors import map_safetensors, read_safetensors, sha256

__all__ = ["apply_low_rank", "map_safetensors", "read_safetensors", "sha256"]

"""Reading checkpoints: one file per format, one canonical form (parameter name -> tensor)."""

from merging.checkpoints.alignment import Aligned, align, with_base_rows
from merging.checkpoints.clip import hf_clip_to_open_clip, is_hf_clip
from merging.checkpoints.coefficients import read_coefficients, write_coefficients
from merging.checkpoints.files import read_weights, weight_files
from merging.checkpoints.formats import check_file
from merging.checkpoints.lora import apply_low_rank, low_rank_factors
from merging.checkpoints.peft import Adapter, is_adapter, read_adapter
from merging.checkpoints.pickled import Pickled, read_pickled
from merging.checkpoints.safetensors import map_safetensors, read_safetensors, sha256

__all__ = [
    "Adapter",
    "Aligned",
    "Pickled",
    "align",
    "apply_low_rank",
    "check_file",
    "hf_clip_to_open_clip",
    "is_adapter",
    "is_hf_clip",
    "low_rank_factors",
    "map_safetensors",
    "read_adapter",
    "read_coefficients",
    "read_pickled",
    "read_safetensors",
    "read_weights",
    "sha256",
    "weight_files",
    "with_base_rows",
    "write_coefficients",
]

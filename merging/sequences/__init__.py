"""Tasks whose network scores every position of an example: language models, token classifiers."""

from merging.sequences.metrics import bits_per_byte, exact_match, generate, perplexity
from merging.sequences.task import IGNORED, Numbered, SequenceTask

__all__ = ["IGNORED", "Numbered", "SequenceTask", "bits_per_byte", "exact_match", "generate", "perplexity"]

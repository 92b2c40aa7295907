"""A task with scores at every position: next tokens of a language model, or a class for every token.

The scores of a split, [all tokens, V], are never held: whatever needs them goes batch by batch, and keeps numbers of
positions or of examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from bounds.autodiff import batches, check_inputs, chunk_size, memory_budget
from bounds.coarse import likeliest
from bounds.scores import check_finite, check_scores
from bounds.types import Inputs, Params, Sample, leaves, refuse
from merging.measured import Measured, Positions, Taught, Where
from merging.task import BATCH, SPLITS, Split, Task, described

IGNORED = -100
"""Label of a position that does not count (``ignore_index`` of PyTorch's cross-entropy)."""
COPIES = 8
"""Float32 numbers that a pass without gradients may hold for each score: the scores, their rows in float64, and two
temporaries of these."""


class Numbered(Sequence[str]):
    """Names of V classes that have none: "0", "1", ...; no list of them is held."""

    def __init__(self, classes: int) -> None:
        self.numbers = range(classes)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = self.numbers[index]
        return str(found) if isinstance(found, int) else [str(number) for number in found]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbered) and self.numbers == other.numbers

    def __hash__(self) -> int:
        return hash(self.numbers)


@dataclass(frozen=True)
class SequenceTask(Task):
    """One task with a label for every position: packed text of a causal language model, or token classification.

    ``forward`` maps (θ, inputs) to scores [N, L, V], the head inside (``functional(module, apply, per_position=True)``
    makes one of a module). ``labels`` are [N, L] (int64), -100 where a position does not count; of a causal language
    model they are the *next* tokens, so that position l is scored against token l + 1. ``class_names`` names the V
    classes; ``Numbered(50257)`` where they have no names. An example is a sequence: one line of packed text, a
    document, a sentence.

    Without labels (calibration) the positions that count are those where the entry ``mask`` of the inputs is not 0;
    where inputs have no such entry, all do. A model that must see what does not count (a prompt) is given inputs with
    an entry of their own, named by ``mask``, which its ``apply`` leaves out. Where a position is masked out it may have
    no label. Tokens are the first two axes [N, L] of the mask, else of the inputs' first tensor. Every example has a
    position that counts.

    ``text_bytes`` (split -> [N]) are the bytes of the text that an example's counted labels stand for; where they are
    known, bits per byte are shown: perplexities of different tokenizers cannot be compared, bits per byte can.

    A scale is chosen, and merges are ranked, by the mean cross-entropy of a counted token, the field's habit
    (perplexity is its exponential), not by accuracy.

    Raises:
        InputError: as :class:`~merging.task.Task`; labels of another shape or out of range, at a position that is
            masked out, or an example without a position that counts; bytes that are not one number an example.
    """

    per_position: ClassVar[bool] = True
    chosen_by: ClassVar[str] = "cross_entropy"

    _: KW_ONLY
    mask: str = "attention_mask"
    text_bytes: Mapping[Split, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for split, counts in self.text_bytes.items():
            what = f"task {self.name!r}, text_bytes of {split}"
            if split not in SPLITS or split not in self.splits:
                refuse(what, expected="one of its splits", got="none of them", cure="leave it out")
            if counts.shape != (len(getattr(self, split)),) or counts.is_floating_point() or int(counts.min()) < 1:
                got = f"{counts.dtype} {list(counts.shape)}"
                refuse(what, expected="a positive whole number for each example", got=got, cure="count encoded text")

    def counted(self, sample: Sample) -> Tensor:
        """Return which positions of a sample count [N, L] (bool): those with a label, or those not masked out."""
        return self._unmasked(sample.inputs) if sample.labels is None else sample.labels != IGNORED

    def scores(self, params: Params, inputs: Inputs, split: str, model: str) -> Tensor:
        """Return all scores of inputs of a split [N, L, V]: of few examples, as nothing else holds that many numbers.

        Raises:
            InputError: scores of another shape; at a position that is not masked out, scores that are not finite.
        """
        kept = self._unmasked(inputs)
        parts = [scores for scores, _ in self._batches(params, inputs, kept, described(self.name, split, model))]
        return torch.cat(parts)

    def rows(self, params: Params, sample: Sample, split: str, model: str) -> Iterator[tuple[Tensor, Where]]:
        """Yield rows of scores [M, V] at the counted positions, batch by batch, with examples and positions."""
        counted, start = self.counted(sample), 0
        for scores, kept in self._batches(params, sample.inputs, counted, described(self.name, split, model)):
            examples, places = kept.nonzero(as_tuple=True)
            yield scores[examples, places], (examples + start, places)
            start += len(scores)

    def taught(
        self,
        params: Params,
        inputs: Inputs,
        split: str,
        model: str = "expert",
        *,
        top_k: int | None = None,
        temperature: float = 1.0,
    ) -> Taught:
        """Return log-probabilities of a teacher's ``top_k`` likeliest classes at each position, and of the rest.

        Exact where ``top_k`` is None or V and more; else see :mod:`bounds.coarse` for what is lost.
        """
        kept, found = self._unmasked(inputs), []
        for scores, _ in self._batches(params, inputs, kept, described(self.name, split, model)):
            wide = scores.to(torch.promote_types(scores.dtype, torch.float32))  # under autocast they may be narrow
            found.append(likeliest(wide, top_k, temperature))
        classes = [part for _, part in found if part is not None]
        whole = torch.cat([log_p for log_p, _ in found])
        return Taught(whole, Positions(kept, torch.cat(classes) if classes else None))

    def batch_size(self, inputs: Inputs) -> int:
        """Return how many examples are scored in a pass without gradients: as many as the memory budget holds."""
        return min(BATCH, chunk_size(4 * COPIES * self._tokens(inputs).shape[1] * self.classes, memory_budget()))

    def unmasked(self, inputs: Inputs) -> bool:
        """Whether no position is masked out."""
        return bool(self._unmasked(inputs).all())

    def quality(self, measured: Measured) -> float:
        """Return minus the mean cross-entropy of a counted token, in nats: the larger the better."""
        return -measured.loss

    @property
    def particulars(self) -> list[Any]:
        """The mask's name, and bytes of text."""
        return [self.mask, dict(self.text_bytes)]

    @torch.no_grad()
    def _batches(self, params: Params, inputs: Inputs, counted: Tensor, what: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield scores [n, L, V] of consecutive examples, and which positions count [n, L]; these are finite."""
        start, positions = 0, self._tokens(inputs).shape[1]
        for batch in batches(inputs, self.batch_size(inputs)):
            size = check_inputs(batch)
            kept = counted[start : start + size]
            scores = check_scores(self.forward(params, batch), size, self.classes, what, positions)
            check_finite(scores[kept.to(scores.device)], what)
            yield scores, kept.to(scores.device)
            start += size

    def _known(self, taught: Taught) -> None:
        """No rows: what is kept of a teacher does not tell its score at every label."""

    def _text_bytes(self, split: Split) -> Tensor | None:
        return self.text_bytes.get(split)

    def _tokens(self, inputs: Inputs) -> Tensor:
        """Return the tensor whose first two axes are examples and positions."""
        found = leaves(inputs)[0] if isinstance(inputs, Tensor) or self.mask not in inputs else inputs[self.mask]
        if found.ndim < 2 or (not isinstance(inputs, Tensor) and self.mask in inputs and found.ndim != 2):
            cure = "put the mask, or the token ids, first"
            refuse(f"inputs of task {self.name!r}", expected="[N, L, ...]", got=list(found.shape), cure=cure)
        return found

    def _unmasked(self, inputs: Inputs) -> Tensor:
        """Positions that the mask leaves in [N, L]; without a mask all."""
        tokens = self._tokens(inputs)
        if not isinstance(inputs, Tensor) and self.mask in inputs:
            return tokens != 0
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)

    def _check_names(self) -> None:
        if not isinstance(self.class_names, Numbered) or len(self.class_names) < 2:
            super()._check_names()

    def _checked(self, split: Split, sample: Sample) -> Sample:
        result = super()._checked(split, sample)
        empty = (~self.counted(result).any(dim=1)).nonzero().flatten().tolist()
        if empty:
            what, cure = f"task {self.name!r}, split {split}", "leave such examples out"
            got = f"none in {len(empty)} of {len(sample)} (first: {empty[0]})"
            refuse(what, expected="a position that counts in every example", got=got, cure=cure)
        return result

    def _labels(self, labels: Tensor, sample: Sample, what: str) -> Tensor:
        labels, kept = labels.detach(), self._unmasked(sample.inputs)
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            refuse(what, expected="integers, the indices of classes", got=labels.dtype, cure="pass .long()")
        if labels.shape != kept.shape:
            cure = "give one label per position, -100 where it does not count"
            refuse(what, expected=f"labels {list(kept.shape)}", got=list(labels.shape), cure=cure)
        labels = labels.to(torch.int64)
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= self.classes))
        if bool(wrong.any()):
            expected = f"labels in 0..{self.classes - 1}, or {IGNORED}"
            refuse(what, expected=expected, got=int(labels[wrong][0]), cure="match labels to the tokenizer or the head")
        if bool(((labels != IGNORED) & ~kept).any()):
            got = "labels where it is 0"
            refuse(what, expected=f"{IGNORED} where {self.mask} is 0", got=got, cure="mask the labels, too")
        return labels

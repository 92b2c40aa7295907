"""The types every other module speaks in, and the one way to refuse bad input.

Nothing here computes theory. ``Params``, ``Inputs`` and ``Forward`` describe a network as a pure function;
``Sample`` is a split of a data set; ``Estimate``, ``Term`` and ``Bound`` carry numbers together with their
standard error and epistemic status, so that a report can never show a number without saying what it is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

import torch
from torch import Tensor

Params: TypeAlias = Mapping[str, Tensor]
"""Ordered parameter name -> float tensor."""

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""Network inputs; the leading axis of every tensor is the example."""

Forward: TypeAlias = Callable[[Params, Inputs], Tensor]
"""(theta, x [N, ...]) -> scores [N, C]. The head is inside; no weights are hidden."""

Blocks: TypeAlias = Mapping[str, Sequence[str]]
"""Block name -> parameter names; a partition of the parameters."""

Status: TypeAlias = Literal["exact", "certified", "estimated", "assumed"]
STATUSES: tuple[Status, ...] = ("exact", "certified", "estimated", "assumed")
"""From best to worst. A sum is no better than its worst term (docs/theory.md, section 0)."""


class InputError(ValueError):
    """Bad input from outside, in one line: what, expected, got, cure. Commands print it and exit with 2."""


def refuse(what: str, *, expected: object, got: object, cure: str) -> NoReturn:
    """Raise the project's one-line error for bad input.

    Raises:
        InputError: always.
    """
    raise InputError(f"{what}: expected {expected}; got {got}; {cure}")


def meant(name: str, known: Iterable[str], cure: str = "choose one") -> str:
    """Return the cure for a name that is not among the known ones: the nearest of them, where one is near.

    Args:
        name: what was given.
        known: all names.
        cure: said where none is near; capitals, hyphens and underscores do not count.
    """
    by_plain = {_plain_name(other): other for other in known}
    near = difflib.get_close_matches(_plain_name(name), by_plain, n=1)
    return f"did you mean {by_plain[near[0]]}?" if near else cure


def _plain_name(name: str) -> str:
    return name.lower().replace("-", "_")


def worst_status(statuses: Sequence[Status]) -> Status:
    """Return the worst of several statuses (``exact`` for none)."""
    return STATUSES[max((STATUSES.index(status) for status in statuses), default=0)]


@dataclass(frozen=True)
class Sample:
    """Examples of one split: ``inputs`` [N, ...] and, unless it is unlabelled, ``labels`` [N] (int64).

    Raises:
        InputError: inputs that are no tensor or mapping of tensors, labels that are no tensor, different numbers of
            examples.
    """

    inputs: Inputs
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        for what, value in (("inputs", self.inputs), ("labels", self.labels)):
            _check_tensors(what, value, mapping=what == "inputs")
        sizes = {len(t) for t in (*leaves(self.inputs), *([] if self.labels is None else [self.labels]))}
        if len(sizes) != 1:
            refuse(
                "sample",
                expected="one leading size for all tensors",
                got=sorted(sizes),
                cure="align the examples",
            )

    def __len__(self) -> int:
        return len(leaves(self.inputs)[0])

    def take(self, index: Tensor | slice) -> Sample:
        """Return the examples at ``index``, in that order."""
        return Sample(take(self.inputs, index), None if self.labels is None else self.labels[index])


def _check_tensors(what: str, value: object, mapping: bool) -> None:
    """Check that a sample's field is a tensor (or, where it may be, a mapping of tensors) with an axis of examples."""
    parts = list(value.values()) if mapping and isinstance(value, Mapping) else [value]
    parts = parts if mapping or value is not None else []
    if (mapping and not parts) or not all(isinstance(part, Tensor) and part.ndim for part in parts):
        got = sorted({type(part).__name__ for part in parts if not isinstance(part, Tensor)})
        refuse(
            f"{what} of a sample",
            expected=f"a tensor {'or a mapping of tensors ' if mapping else ''}with one row per example",
            got=" and ".join(got) or ("a single number" if parts else "none"),
            cure="make a tensor of them, e.g. torch.as_tensor(...) or a tokenizer with return_tensors='pt'",
        )


def leaves(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of ``inputs``."""
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.values())


def take(inputs: Inputs, index: Tensor | slice) -> Inputs:
    """Return the examples of ``inputs`` at ``index``."""
    return inputs[index] if isinstance(inputs, Tensor) else {name: t[index] for name, t in inputs.items()}


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error, the number of examples (or draws) behind it, and its status.

    ``stderr`` is 0 for exact numbers; ``n`` is 0 where counting examples makes no sense.
    """

    value: float
    stderr: float = 0.0
    n: int = 0
    status: Status = "exact"

    @staticmethod
    def of_mean(values: Tensor, status: Status = "estimated") -> Estimate:
        """Mean of i.i.d. ``values`` [N] with the standard error of the mean (float64; ddof 1; inf for N = 1)."""
        values = values.detach().to(torch.float64).flatten()
        if len(values) == 0:
            refuse("values", expected="at least one", got="none", cure="pass a non-empty sample")
        n = len(values)
        stderr = math.inf if n == 1 else float(values.std()) / math.sqrt(n)
        return Estimate(float(values.mean()), stderr, n, status)

    def scaled(self, factor: float) -> Estimate:
        """Return ``factor`` times this estimate."""
        return Estimate(factor * self.value, abs(factor) * self.stderr, self.n, self.status)


def weighted_sum(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Σ w_t e_t of independent estimates: standard errors add in quadrature, n is the total, status the worst.

    Entries of weight 0 do not count towards n or status.
    """
    used = [(e, w) for e, w in zip(estimates, weights, strict=True) if w != 0]
    return Estimate(
        sum(w * e.value for e, w in used),
        math.sqrt(sum((w * e.stderr) ** 2 for e, w in used)),
        sum(e.n for e, _ in used),
        worst_status([e.status for e, _ in used]),
    )


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a bound.

    ``symbol`` as in docs/theory.md, ``equation`` the number there, ``per_task`` the unweighted per-task (or
    per-expert) values where the term has them; ``estimate`` is what enters the sum.
    """

    symbol: str
    name: str
    equation: str
    estimate: Estimate
    per_task: tuple[Estimate, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """An upper bound on a risk as a sum of terms, holding with probability at least 1 - ``delta``.

    ``trivial_risk`` is the risk of the predictor that knows nothing (ln C for cross-entropy, 1 for 0-1 loss): a
    bound at or above it is vacuous.
    """

    name: str
    reading: str
    terms: tuple[Term, ...]
    delta: float
    assumptions: tuple[str, ...] = ()
    trivial_risk: float = math.inf

    @property
    def value(self) -> float:
        """The bound: the sum of its terms."""
        return sum(term.estimate.value for term in self.terms)

    @property
    def status(self) -> Status:
        """The worst status among the terms."""
        return worst_status([term.estimate.status for term in self.terms])

    @property
    def stderr(self) -> float:
        """Sum of the terms' standard errors: an upper limit, since terms share examples."""
        return sum(term.estimate.stderr for term in self.terms)

    @property
    def vacuous(self) -> bool:
        """Whether the bound says no more than the trivial predictor (also when it is not finite)."""
        return not self.value < self.trivial_risk

    @property
    def shares(self) -> dict[str, float]:
        """Symbol -> value of the term / sum of the absolute values of all terms."""
        total = sum(abs(term.estimate.value) for term in self.terms)
        return {term.symbol: (term.estimate.value / total if total else 0.0) for term in self.terms}

"""Coverage of (14), (15), (18), (19) on finite populations, from splits drawn class by class as shipped ones are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bounds.certificates import BoundedSample, Constants, TaskLosses, choose_constants, ledger, weighted_mean
from bounds.scores import (
    cross_entropy,
    largest_smoothed_loss,
    probabilities,
    smoothed_cross_entropy,
    smoothed_losses,
    zero_one_loss,
)
from diagnostics.study.rows import DELTA, Row, violation_row

CLASSES, EACH = (3, 4), 50
"""Classes of the two tasks, and examples of a class in the population."""
LABELLED, UNLABELLED = (20, 8), (80, 40)
"""Examples of a class that are drawn, per task."""
ALPHA = (0.4, 0.6)
FLOOR = 0.02
SETTING = f"T=2, {CLASSES} classes of {EACH}, drawn class by class: n_c={LABELLED}"
WITH_INPUTS = f"{SETTING}, N_c={UNLABELLED}"


@dataclass(frozen=True, kw_only=True)
class Population:
    """All examples of one task, in order of class: what is certified, and the losses of merge and experts.

    Every quantity is X and its guess from the expert's probabilities, on all examples; ``raw`` is cross-entropy [N].
    """

    quantities: Mapping[str, BoundedSample]
    losses: TaskLosses
    raw: Tensor

    @classmethod
    def of(cls, merge: Tensor, experts: Sequence[Tensor], own: int, labels: Tensor) -> Population:
        """Measure the scores [N, C] of the merge and of every expert; the task's own is ``experts[own]``."""
        teacher, picked = probabilities(experts[own]), merge.argmax(1)
        wrong, expert_wrong = zero_one_loss(merge, labels), zero_one_loss(experts[own], labels)
        guess = 1.0 - teacher.gather(1, picked[:, None])[:, 0]
        expert_guess, every = 1.0 - teacher.max(1).values, smoothed_losses(merge, FLOOR)
        nats, most = (teacher * every).sum(1), largest_smoothed_loss(merge.shape[1], FLOOR)
        return cls(
            quantities={
                "error": _sample(wrong, guess, 0.0, 1.0),
                "excess": _sample(wrong - expert_wrong, guess - expert_guess, -1.0, 1.0),
                "nats": _sample(smoothed_cross_entropy(merge, labels, FLOOR), nats, 0.0, most),
            },
            losses=TaskLosses(
                merged=wrong, experts=torch.stack([zero_one_loss(e, labels) for e in experts], 1), largest=1.0
            ),
            raw=cross_entropy(merge, labels),
        )


def _sample(values: Tensor, guess: Tensor, lower: float, upper: float) -> BoundedSample:
    return BoundedSample(values=values, lower=lower, upper=upper, predicted=guess, unlabelled=guess)


def populations(generator: np.random.Generator) -> tuple[list[Population], list[Population]]:
    """Make two tasks, and as pilots the same inputs with labels drawn from the experts.

    An expert separates its own task's classes, later ones worse; the merge less well, and with one of 50 examples
    it is sure of a wrong label.
    """
    worlds, pilots = [], []
    for own, classes in enumerate(CLASSES):
        labels = torch.arange(classes).repeat_interleave(EACH)
        hot = torch.nn.functional.one_hot(labels).double()
        noise = torch.from_numpy(generator.normal(size=(3, len(labels), classes)))
        ease = torch.linspace(1.2, 0.6, classes, dtype=torch.float64)[labels, None]
        experts = [(3.0 if j == own else 1.0) * ease * hot + noise[j] for j in range(2)]
        merge = 2.0 * ease * hot + 0.5 * (experts[own] - 3.0 * ease * hot) + noise[2]
        merge[::EACH] = 80.0 * hot[::EACH].roll(1, dims=1)
        drawn = torch.multinomial(probabilities(experts[own]), 1, generator=_torch(generator))[:, 0]
        worlds.append(Population.of(merge, experts, own, labels))
        pilots.append(Population.of(merge, experts, own, drawn))
    return worlds, pilots


def _torch(generator: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(generator.integers(2**31)))


def population_rows(generator: np.random.Generator, draws: int) -> list[Row]:
    """(14), (15), (19) as the report uses them, and (18) jointly, each on the same draws; with mutants."""
    worlds, pilots = populations(generator)
    certified = Certified(worlds, pilots)
    missed: dict[str, list[bool]] = {}
    for _ in range(draws):
        labelled, others, easy = drawn(generator)
        for name, value in certified.on(labelled, others, easy).items():
            missed.setdefault(name, []).append(value)
    rows = (
        ("error", "(14)", "as stated", SETTING),
        ("error, inputs", "(15)", "as stated", WITH_INPUTS),
        ("error, other shares", "(15)", "inputs of other class shares", f"{WITH_INPUTS} of the first class"),
        ("excess, inputs", "(15)", "as stated", f"{WITH_INPUTS}, merge minus expert"),
        ("nats, inputs", "(19)", "as stated", f"{WITH_INPUTS}, eps={FLOOR:g}"),
        ("raw", "(19)", "raw cross-entropy", f"{SETTING}, eps={FLOOR:g}, one of {EACH} sure and wrong"),
        ("ledger", "(18)", "as stated", f"{SETTING}, three parts together"),
        ("subtracted", "(18)", "difference of two limits", f"{SETTING}, effect of merging"),
    )
    return [
        violation_row(
            claim, variant, setting, "statement" if variant == "as stated" else "mutant", np.array(missed[name])
        )
        for name, claim, variant, setting in rows
    ]


def drawn(generator: np.random.Generator) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Positions per task, with replacement: labelled, unlabelled, and as many unlabelled of the first class alone."""

    def positions(counts: Sequence[int], *, spread: bool) -> list[Tensor]:
        return [
            torch.from_numpy(
                generator.integers(0, EACH, (classes, n)) + (EACH * np.arange(classes)[:, None] if spread else 0)
            ).flatten()
            for classes, n in zip(CLASSES, counts, strict=True)
        ]

    return positions(LABELLED, spread=True), positions(UNLABELLED, spread=True), positions(UNLABELLED, spread=False)


class Certified:
    """Constants, chosen once on the pilots, and the truth of every statement."""

    def __init__(self, worlds: Sequence[Population], pilots: Sequence[Population]) -> None:
        self.worlds = worlds
        everything = [torch.arange(len(world.raw)) for world in worlds]
        labelled, others, _ = drawn(np.random.default_rng(0))  # of which only the sizes are looked at
        self.constants: dict[tuple[str, bool], Constants] = {}
        for name, inputs in (("error", False), ("error", True), ("excess", True), ("nats", False), ("nats", True)):
            pilot = self._samples(pilots, name, everything, everything if inputs else None)
            samples = self._samples(worlds, name, labelled, others if inputs else None)
            self.constants[name, inputs] = choose_constants(pilot, samples, ALPHA, DELTA)
        self.truth = {name: self._mean([w.quantities[name].values for w in worlds]) for name in worlds[0].quantities}
        self.raw = self._mean([w.raw for w in worlds])
        whole = ledger([w.losses for w in worlds], ALPHA, ALPHA, DELTA)
        self.parts = [part.terms[0].estimate.value for part in (whole.own, whole.heterogeneity, whole.merging)]

    def on(self, labelled: Sequence[Tensor], others: Sequence[Tensor], easy: Sequence[Tensor]) -> dict[str, bool]:
        """Return which statements miss on one draw."""
        losses = [
            TaskLosses(merged=w.losses.merged[i], experts=w.losses.experts[i], largest=1.0)
            for w, i in zip(self.worlds, labelled, strict=True)
        ]
        found = ledger(losses, ALPHA, ALPHA, DELTA)
        parts = (found.own, found.heterogeneity, found.merging)
        mixed = [BoundedSample(values=task.experts @ torch.tensor(ALPHA, dtype=torch.float64)) for task in losses]
        subtracted = found.total.value - weighted_mean(mixed, ALPHA, DELTA).value
        return {
            "error": self._limit("error", labelled) < self.truth["error"],
            "error, inputs": self._limit("error", labelled, others) < self.truth["error"],
            "error, other shares": self._limit("error", labelled, easy) < self.truth["error"],
            "excess, inputs": self._limit("excess", labelled, others) < self.truth["excess"],
            "nats, inputs": self._limit("nats", labelled, others) < self.truth["nats"],
            "raw": self._limit("nats", labelled) < self.raw,
            "ledger": any(part.value < truth for part, truth in zip(parts, self.parts, strict=True)),
            "subtracted": subtracted < self.parts[2],
        }

    def _limit(self, name: str, labelled: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> float:
        samples = self._samples(self.worlds, name, labelled, others)
        return weighted_mean(samples, ALPHA, DELTA, self.constants[name, others is not None]).value

    @staticmethod
    def _samples(
        worlds: Sequence[Population], name: str, labelled: Sequence[Tensor], others: Sequence[Tensor] | None
    ) -> list[BoundedSample]:
        samples = []
        for index, world in enumerate(worlds):
            whole = world.quantities[name]
            assert whole.predicted is not None
            values, guess = whole.values[labelled[index]], whole.predicted
            g, other = (None, None) if others is None else (guess[labelled[index]], guess[others[index]])
            samples.append(
                BoundedSample(values=values, lower=whole.lower, upper=whole.upper, predicted=g, unlabelled=other)
            )
        return samples

    @staticmethod
    def _mean(values: Sequence[Tensor]) -> float:
        return sum(a * float(v.mean()) for a, v in zip(ALPHA, values, strict=True))

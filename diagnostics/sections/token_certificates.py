"""What is certified where every position has scores: (14) on examples, whose tokens are averaged and not counted.

The tokens of an example depend on each other: a count of them is no count of independent trials, and (13) does not hold
for it. The mean over the counted tokens of one example is one number in a known range, and examples are independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rich.table import Table
from torch import Tensor

from bounds.certificates import BoundedSample, choose_constants, weighted_mean
from bounds.scores import largest_smoothed_loss
from bounds.sequences import example_means
from bounds.types import Bound
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.certified import (
    DIFFERENCE,
    ERRORS,
    IN_NATS,
    NATS_DIFFERENCE,
    Certificate,
    drawn,
    in_unit,
    unused_labels,
    validation_use,
)
from diagnostics.sections.evidence import calibration_use
from diagnostics.settings import FLOOR
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.terms.tokens import Sums
from diagnostics.workspace import Workspace
from merging.commands import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Models = Mapping[str, Sums]
"""Of one task's examples: model (pretrained, expert, merged) -> sums."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A bounded quantity of an example: the mean of ``name`` under the merge, minus that of ``against`` if named."""

    name: str
    about: str
    unit: str
    sums: str
    against: str = ""

    def sample(self, models: Models, classes: int) -> BoundedSample:
        """Return X_i of every example, with its range."""
        largest = largest_smoothed_loss(classes, FLOOR) if self.sums == "smoothed" else 1.0
        values = self._mean(models["merged"])
        if not self.against:
            return BoundedSample(values=values, upper=largest)
        return BoundedSample(values=values - self._mean(models[self.against]), lower=-largest, upper=largest)

    def _mean(self, sums: Sums) -> Tensor:
        return example_means(sums[self.sums], sums["positions"])


NATS = Quantity(name=f"cross-entropy of a token, floor ε = {FLOOR:g}", about="θ_m", unit=IN_NATS, sums="smoothed")
WRONG = Quantity(name="wrong tokens", about="θ_m", unit=ERRORS, sums="wrong")
_NATS_ABOVE = replace(NATS, unit=NATS_DIFFERENCE)
QUANTITIES = (
    NATS,
    WRONG,
    replace(_NATS_ABOVE, name="cross-entropy above the pretrained model's", about="θ_m − θ_0", against="pretrained"),
    replace(_NATS_ABOVE, name="cross-entropy above the experts'", about="θ_m − experts", against="expert"),
    replace(
        WRONG,
        name="wrong tokens above the pretrained model's",
        about="θ_m − θ_0",
        unit=DIFFERENCE,
        against="pretrained",
    ),
)
"""What is certified of the α-weighted mean; the first is the one that the verdict quotes, and that of every domain."""


@dataclass(frozen=True, kw_only=True)
class DomainCertificate:
    """One domain's smoothed cross-entropy of a token (nats), certified by (14) at δ/T, so that all hold together.

    ``beyond``: that on the test split is larger.
    """

    task: str
    observed: float
    value: float
    n: int
    test: float
    test_examples: int
    beyond: bool


@dataclass(frozen=True, kw_only=True)
class TokenCertificates:
    """All certificates of one merge, each of a mean over ``n`` validation examples of their means over tokens.

    ``tokens`` are how many count in them. ``use`` says what the merge did with the validation labels; ``missing`` which
    statements could not be made, and why. ``models_looked_at`` is what δ was divided by (0: unknown).
    """

    use: str
    models_looked_at: int
    n: int
    tokens: int
    rows: tuple[Certificate, ...]
    tasks: tuple[DomainCertificate, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenEvidence:
    """Per task the sums of the three models on validation, test and pilot (None: there is none), and V."""

    validation: Sequence[Models]
    test: Sequence[Models]
    pilot: Sequence[Models] | None
    classes: Sequence[int]

    def samples(self, quantity: Quantity, group: Sequence[Models]) -> list[BoundedSample]:
        """Return the sample of every task of one of the three groups."""
        return [quantity.sample(models, classes) for models, classes in zip(group, self.classes, strict=True)]

    def pilots(self, quantity: Quantity) -> list[BoundedSample] | None:
        """Return the pilot's samples."""
        return None if self.pilot is None else self.samples(quantity, self.pilot)


def token_evidence(workspace: Workspace, subject: Subject) -> TokenEvidence:
    """Measure what is needed. Exact, but for the pilot's labels, which are drawn from the experts."""
    workspace.check_labels("validation", "certificates")
    workspace.check_labels("test", "certificates, which are shown beside the test figures")
    found, facts = workspace.tokens(subject), workspace.facts()
    split = [[{m: sums[name] for m, sums in task.items()} for task in found] for name in ("validation", "test")]
    sizes, pilot = [fact["sizes"].get("calibration", 0) for fact in facts], None
    if all(sizes):
        use = calibration_use(subject.artifact, sizes, workspace.settings.seed, by_class=False)
        pilot = workspace.pilot_tokens(subject, use.pilot)
    return TokenEvidence(split[0], split[1], pilot, [fact["classes"] for fact in facts])


def compute(workspace: Workspace, subject: Subject) -> TokenCertificates:
    """Certify. Status: certified; what stands beside it of the test split is exact for that."""
    evidence = token_evidence(workspace, subject)
    looks, use = validation_use(subject)
    models = (looks or 0) * workspace.models_looked_at
    counts = [task["merged"]["positions"] for task in evidence.validation]
    return TokenCertificates(
        use=use,
        models_looked_at=models,
        n=sum(map(len, counts)),
        tokens=int(sum(float(c.sum()) for c in counts)),
        rows=tuple(_row(workspace, evidence, quantity, models) for quantity in QUANTITIES if models),
        tasks=_domains(workspace, evidence, models) if models else (),
        missing={} if looks else {"(14) held-out": use},
    )


def _row(workspace: Workspace, evidence: TokenEvidence, quantity: Quantity, models: int) -> Certificate:
    samples, test = (evidence.samples(quantity, group) for group in (evidence.validation, evidence.test))
    bound = _certified(samples, evidence.pilots(quantity), workspace.alpha, workspace.settings.delta, models)
    return Certificate(
        equation="(14), (22)",
        name=f"{quantity.name}, α-weighted",
        about=quantity.about,
        unit=quantity.unit,
        observed=bound.terms[0].estimate.value,
        value=bound.value,
        n=sum(len(s.values) for s in samples),
        unlabelled=0,
        delta=bound.delta,
        test_error=sum(a * float(s.values.mean()) for a, s in zip(workspace.alpha, test, strict=True)),
        assumptions=bound.assumptions,
    )


def _certified(
    samples: Sequence[BoundedSample],
    pilots: Sequence[BoundedSample] | None,
    alpha: Sequence[float],
    delta: float,
    models: int,
) -> Bound:
    constants = None if pilots is None else choose_constants(pilots, samples, alpha, delta / models)
    return weighted_mean(samples, alpha, delta, constants, models_looked_at=models)


def _domains(workspace: Workspace, evidence: TokenEvidence, models: int) -> tuple[DomainCertificate, ...]:
    first, share, rows = NATS, workspace.settings.delta / len(workspace.names), []
    there, test = (evidence.samples(first, group) for group in (evidence.validation, evidence.test))
    pilots = evidence.pilots(first)
    for index, name in enumerate(workspace.names):
        pilot = None if pilots is None else [pilots[index]]
        bound, other = _certified([there[index]], pilot, [1.0], share, models), float(test[index].values.mean())
        rows.append(
            DomainCertificate(
                task=name,
                observed=bound.terms[0].estimate.value,
                value=bound.value,
                n=len(there[index].values),
                test=other,
                test_examples=len(test[index].values),
                beyond=other > bound.value,
            )
        )
    return tuple(rows)


def table(view: View, part: TokenCertificates) -> Table:
    """Return the statements, a row each."""
    title = f"{view.label}: certified at most (% or nats), n = {part.n} validation examples, each row on its own"
    table = Table(title=plain(title, "table.title"))
    for column in ("statement", "about", "observed", "certified", "test", "δ"):
        table.add_column(column, justify="left" if column in ("statement", "about") else "right")
    for row in part.rows:
        figures = [in_unit(v, row.unit) for v in (row.observed, row.value, row.test_error)]
        table.add_row(row.name, row.about, *figures, f"{row.delta:.3g}")
    table.caption = plain(part.use, "table.caption")
    return table


def figure(view: View, part: TokenCertificates) -> Figure:
    """Draw the certified cross-entropy of a token next to those on validation and test: all domains, then each."""
    from diagnostics.figures import style

    entries = [("all, α-weighted", r.observed, r.value, r.test_error) for r in part.rows[:1]]
    entries += [(style.named(t.task), t.observed, t.value, t.test) for t in part.tasks]
    label = f"smoothed cross-entropy of a token (nats), n = {part.n} validation examples in all"
    return drawn(entries, label, observed="observed on validation", test="test", columns=3)[0]


def assumptions(parts: Sequence[tuple[View, TokenCertificates]]) -> list[Assumption]:
    """Say what every merge did with the labels, what is independent, and where constants come from."""
    lines = [unused_labels(view.label, f"{part.n} validation examples", part) for view, part in parts]
    how = "calibration inputs with tokens drawn from the experts: wrong ones cost width, not validity"
    return [*lines, Assumption("constants of (14)", "ν, offsets", how)]


SECTION = Section(
    kind=TokenCertificates,
    compute=compute,
    title="What is certified",
    link="certificates",
    how=("22", "14", "19"),
    table=table,
    figures={"token_certificates": Drawn(figure, there=lambda part: bool(part.rows))},
    assumptions=assumptions,
    missing=lambda part: part.missing,
    scored={"position"},
)

"""What the merge did: to which task, because of which expert and which layers, and what is worth trying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from torch import Tensor

from bounds.autodiff import memory_budget
from bounds.types import InputError, Params
from diagnostics.diagnosis import (
    HURT,
    NEUTRAL,
    SERVED,
    Advice,
    Candidate,
    Changes,
    Diagnosis,
    LayerChange,
    ScaleChange,
    TaskVerdict,
    Trial,
    coefficient_map,
    layer_groups,
    measured,
    split_of,
    verdicts,
    worth_trying,
)
from diagnostics.figures.numbers import percent, percent_estimate, points
from diagnostics.sections import diagnosis_figures
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.workspace import Workspace
from merging.commands import plain
from merging.editing import Edit
from merging.suites import SUITES
from merging.task_vectors import Geometry

SCALES = (0.7, 1.5)
"""Factors of θ_m - θ_0 that are tried."""
CALIBRATION = 64
"""Calibration examples a task of another method that needs them, at most."""
EXPECTED = (InputError, RuntimeError, MemoryError)
"""What merging again may end with: it is refused, or PyTorch finds no solution or no memory. All else is a mistake."""
WITHOUT, EDITS, OTHER, ADVICE = "leaving out an expert", "layers at θ_0, other scales", "another method", "what to try"


def compute(workspace: Workspace, subject: Subject) -> Diagnosis:
    """Test the tasks, leave out what can be left out, and measure what might be better. Estimated; geometry exact."""
    workspace.check_labels("test", "the diagnosis")
    settings, names, missing = workspace.settings, workspace.names, dict[str, str]()
    groups = layer_groups(workspace.blocks, workspace.displacement(subject))
    out = [Trial(examples=settings.left_out, edit=Edit(without=(name,))) for name in names]
    back = [Trial(examples=settings.layer_examples, edit=Edit(base=group.patterns)) for group in groups]
    far = [Trial(examples=settings.left_out, edit=Edit(scale=scale)) for scale in SCALES]
    without = _measured(workspace, subject, out, WITHOUT, missing)
    edits, other = _edits_and_other(workspace, subject, [*back, *far], missing)
    layers, scales = edits[: len(back)], edits[len(back) :]
    candidates = [
        *(
            _candidate(f"leave out the expert of {n}", t, c, names)
            for n, t, c in zip(names, out, without, strict=False)
        ),
        *(
            _candidate(f"leave {group.name} at θ_0 ({100 * group.share:.0f} % of the squared distance)", t, c, names)
            for group, t, c in zip(groups, back, layers, strict=True)
        ),
        *(_candidate(f"multiply θ_m − θ_0 by {t.edit.scale:g}", t, c, names) for t, c in zip(far, scales, strict=True)),
    ]
    split, sizes = split_of(workspace), [len(fact[f"{split_of(workspace)}_labels"]) for fact in workspace.facts()]
    advice: tuple[Advice, ...] = ()
    if split == "validation":
        candidates += [_candidate(f"merge by {trial.method}", trial, change, names) for trial, change in other]
        advice = worth_trying(candidates, settings.delta, _origin(subject))
    else:
        missing[ADVICE] = "a task has no validation split to check advice on"
    return Diagnosis(
        level=settings.delta,
        tasks=_verdicts(workspace, subject),
        split=split,
        examples=tuple(min(size, settings.left_out) for size in sizes),
        layer_examples=tuple(min(size, settings.layer_examples) for size in sizes),
        without=tuple(without),
        layers=tuple(LayerChange(group, found) for group, found in zip(groups, layers, strict=True)),
        scales=tuple(ScaleChange(scale, found) for scale, found in zip(SCALES, scales, strict=True)),
        coefficients=coefficient_map(subject.artifact, list(workspace.vectors.base)),
        vectors=Geometry.of(workspace.vectors),
        tried=len(candidates),
        advice=advice,
        missing=missing,
    )


def _verdicts(workspace: Workspace, subject: Subject) -> tuple[TaskVerdict, ...]:
    teachers, merged = workspace.teachers(), workspace.merged(subject)

    def right(scores: Sequence[Tensor]) -> list[Tensor]:
        return [s.argmax(dim=1) == t["test_labels"] for s, t in zip(scores, teachers, strict=True)]

    return verdicts(
        workspace.names,
        right([t["pretrained"] for t in teachers]),
        right([t["expert"] for t in teachers]),
        right([m["test"] for m in merged]),
        workspace.settings.delta,
    )


def _measured(
    workspace: Workspace, subject: Subject, trials: Sequence[Trial], what: str, missing: dict[str, str], told: str = ""
) -> list[Changes]:
    """Measure, ``told`` while it lasts, or name the reason why ``what`` cannot be measured."""
    try:
        return measured(workspace, subject, trials, told or what)
    except EXPECTED as error:  # the rest of the diagnosis does not need it
        missing[what] = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return []


def _edits_and_other(
    workspace: Workspace, subject: Subject, edits: Sequence[Trial], missing: dict[str, str]
) -> tuple[list[Changes], list[tuple[Trial, Changes]]]:
    """Measure edits of the merge together with another method (alone it would leave processes idle), if one can run."""
    for other in _other_methods(workspace, subject) if split_of(workspace) == "validation" else []:
        if found := _measured(workspace, subject, [*edits, other], OTHER, missing, f"{EDITS}, {OTHER}"):
            missing.pop(OTHER, None)
            return found[:-1], [(other, found[-1])]
    return measured(workspace, subject, edits, EDITS), []


def _other_methods(workspace: Workspace, subject: Subject) -> list[Trial]:
    """Return cheap methods without labels to try, the first that can be run: RegMean (if it fits), task arithmetic."""
    examples = min(CALIBRATION, *(fact["sizes"].get("calibration", 0) for fact in workspace.facts()))
    fits = _regression_bytes(workspace.vectors.base) <= memory_budget()
    others: Mapping[str, Mapping[str, float | int]] = {
        "regmean": {"examples": examples},
        "task_arithmetic": {"scale": 0.3},
    }
    return [
        Trial(examples=workspace.settings.left_out, method=method, settings=settings)
        for method, settings in others.items()
        if method != subject.artifact.label and (method != "regmean" or (examples and fits))
    ]


def _regression_bytes(base: Params) -> int:
    """Memory that RegMean takes: of every weight [m, n] its sums [n, n] and [n, m], float64, and inputs' products.

    With a width of 768 it is more than all else in a report.
    """
    matrices = [value.shape for value in base.values() if value.ndim == 2]
    return sum(12 * n * n + 8 * m * n for m, n in matrices)


def _origin(subject: Subject) -> str:
    """Return what finds the suite again; "" where nothing does."""
    artifact = subject.artifact
    return artifact.origin or (artifact.suite if artifact.suite in SUITES else "")


def _candidate(text: str, trial: Trial, found: Changes, names: Sequence[str]) -> Candidate:
    best = max(range(len(names)), key=lambda index: found.tasks[index].value)
    reason = f"{names[best]} changes most, by {points(found.tasks[best])} points"
    return Candidate(text, reason, trial, found.mean)


def counts(part: Diagnosis) -> dict[str, int]:
    """Return how many tasks were served, left alone and hurt."""
    return {word: sum(task.word == word for task in part.tasks) for word in (SERVED, NEUTRAL, HURT)}


def sentence(view: View, part: Diagnosis) -> str:
    """To how many tasks the merge did good and harm, the worst of them, and which expert hurts it most."""
    found, worst, total = counts(part), part.worst, len(part.tasks)
    text = (
        f"Of {total} task{'s' if total > 1 else ''} {found[SERVED]} {'is' if found[SERVED] == 1 else 'are'} served, "
        f"{found[NEUTRAL]} neutral and {found[HURT]} hurt below pretrained; worst is {worst.name}: "
        f"{percent(worst.merge.value)} % right, pretrained {percent(worst.pretrained.value)} %, its expert "
        f"{percent(worst.expert.value)} % (merge − pretrained {points(worst.difference)} points)"
    )
    index = part.tasks.index(worst)
    expert = part.hurt_most_by(index)
    if expert is not None:
        gain, n = part.without[expert].tasks[index], part.examples[index]
        text += f"; the expert that hurts it most is {view.tasks[expert]}: without it {points(gain)} points"
        text += f" ({n} {part.split} examples"
        text += ")" if gain.value >= 2 * gain.stderr else ", less than two standard errors)"
    elif part.without:
        text += f"; leaving out no expert helps it ({part.examples[index]} {part.split} examples)"
    return text + "."


def table(view: View, part: Diagnosis) -> Table:
    """Return the tasks, a row each, and what to try."""
    table = Table(title=plain(f"{view.label}: what the merge did, test accuracy in %", "table.title"))
    for column in (
        "task",
        "pretrained",
        "expert",
        "merge",
        "Δ to pretrained",
        "gain kept %",
        "verdict",
        "hurt most by",
    ):
        table.add_column(column, justify="left" if column in ("task", "verdict", "hurt most by") else "right")
    for index, task in enumerate(part.tasks):
        three = [percent(e.value) for e in (task.pretrained, task.expert, task.merge)]
        kept = "–" if task.recovered is None else percent_estimate(task.recovered, 0)
        expert = part.hurt_most_by(index)
        by = "" if expert is None else f"{view.tasks[expert]} ({points(part.without[expert].tasks[index])} without)"
        table.add_row(plain(task.name), *three, points(task.difference), kept, task.word, plain(by))
    lines = [
        f"try: {line.text}: {points(line.change)} points on {part.split}: {line.command(view.file)}"
        for line in part.advice
    ]
    table.caption_justify = "left"
    nothing = f"of {part.tried} other merges tried none is better beyond its error"
    table.caption = plain("\n".join(lines) or nothing, "table.caption")
    return table


def assumptions(parts: Sequence[tuple[View, Diagnosis]]) -> Sequence[Assumption]:
    """Say what the words and the advice rest on."""
    level, tried = parts[0][1].level, max(part.tried for _, part in parts)
    return (
        Assumption(
            "served, neutral, hurt",
            f"exact two-sided paired test, Holm over tasks, level {level:g}",
            "test examples on which merge and pretrained model differ",
        ),
        Assumption(
            "what to try",
            f"lower limit above 0 among {tried} merges, level {level:g}",
            "paired differences taken as normal (Bonferroni); whoever follows a line has chosen on these labels",
        ),
    )


SECTION = Section(
    kind=Diagnosis,
    compute=compute,
    title="What the merge did, and what to try",
    link="diagnosis",
    table=table,
    figures={
        "without": Drawn(diagnosis_figures.without, there=lambda part: bool(part.without)),
        "coefficients": Drawn(diagnosis_figures.coefficients, there=diagnosis_figures.is_map),
        "task_vectors": Drawn(diagnosis_figures.task_vectors, once=True),
    },
    sentence=sentence,
    assumptions=assumptions,
    missing=lambda part: part.missing,
    scored={"example"},
    rests_on="its trials, experts left out and layers at θ_0, are told apart by the examples that are right",
)

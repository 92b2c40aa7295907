"""What a merge did to every domain, where every position has scores: cross-entropy of a token, and who was hurt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from torch import Tensor

from bounds.sequences import example_means, mean_of_positions
from bounds.types import Estimate, weighted_sum
from diagnostics.diagnosis import HURT, NEUTRAL, SERVED, Word, sign_test
from diagnostics.figures.numbers import estimate, number, percent, percent_estimate, signed_estimate
from diagnostics.figures.svg import INK
from diagnostics.sections.base import Drawn, Section, View
from diagnostics.sections.token_certificates import TokenCertificates
from diagnostics.statements import Assumption
from diagnostics.subject import Subject
from diagnostics.terms.tokens import Sums
from diagnostics.workspace import Workspace
from merging.commands import paired, plain
from merging.commands.evaluation import MODELS, mean
from merging.sequences import perplexity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class TokenFigures:
    """One model on a domain's test split: means over all counted tokens, errors with the example as the unit.

    ``cross_entropy`` is in nats, ``perplexity`` its exponential, ``by_example`` the mean over examples of each
    example's mean; ``accuracy`` the share of tokens that are likeliest (0..1); ``bits_per_byte`` None where the bytes
    of the text are not known.
    """

    cross_entropy: Estimate
    by_example: Estimate
    perplexity: float
    bits_per_byte: float | None
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class DomainVerdict:
    """What the merge did to one domain, on its test split.

    ``difference`` is the cross-entropy of a token under the merge minus under the pretrained model (nats), paired over
    ``examples``; ``recovered`` the share of the expert's gain over the pretrained model that the merge keeps (None
    where the expert gains nothing). ``won`` examples have a smaller mean under the merge, ``lost`` a larger one.
    ``p_value`` is that of the exact two-sided test that both are as likely, after Holm's correction: at or below the
    level the word is not neutral, if the difference has the same sign. ``one_length``: all examples have as many tokens
    that count.
    """

    name: str
    classes: int
    examples: int
    tokens: int
    one_length: bool
    models: Mapping[str, TokenFigures]
    difference: Estimate
    recovered: Estimate | None
    won: int
    lost: int
    p_value: float
    word: Word


@dataclass(frozen=True, kw_only=True)
class TokenSection:
    """Verdicts per domain, whose words hold together at ``level``; α-weighted cross-entropy of a token (nats).

    ``risk`` is the mean over tokens, ``risk_by_example`` the mean over examples of their means: what is certified.
    ``trivial_risk`` is Σ α_t ln V_t.
    """

    level: float
    tasks: tuple[DomainVerdict, ...]
    risk: Estimate
    risk_by_example: Estimate
    trivial_risk: float

    @property
    def worst(self) -> DomainVerdict:
        """The domain whose tokens lost most."""
        return max(self.tasks, key=lambda task: task.difference.value)


def compute(workspace: Workspace, subject: Subject) -> TokenSection:
    """Measure the three models. Exact for the split; estimates of a domain's mean with their errors."""
    workspace.check_labels("test", "the figures of every domain")
    facts, level = workspace.facts(), workspace.settings.delta
    found = [{model: splits["test"] for model, splits in task.items()} for task in workspace.tokens(subject)]
    counts = [_counts(models) for models in found]
    p_values = paired.holm([sign_test(won, lost) for won, lost in counts])
    tasks = tuple(
        _verdict(name, fact["classes"], fact["text_bytes"], models, count, p_value, level)
        for name, fact, models, count, p_value in zip(workspace.names, facts, found, counts, p_values, strict=True)
    )
    return TokenSection(
        level=level,
        tasks=tasks,
        risk=weighted_sum([task.models["merged"].cross_entropy for task in tasks], workspace.alpha),
        risk_by_example=weighted_sum([task.models["merged"].by_example for task in tasks], workspace.alpha),
        trivial_risk=workspace.trivial_risk,
    )


def _means(sums: Sums) -> Tensor:
    return example_means(sums["cross_entropy"], sums["positions"])


def _counts(models: Mapping[str, Sums]) -> tuple[int, int]:
    """Examples whose mean cross-entropy is smaller under the merge than under the pretrained model, and larger."""
    before, after = _means(models["pretrained"]), _means(models["merged"])
    return int((after < before).sum()), int((after > before).sum())


def _verdict(
    name: str,
    classes: int,
    text_bytes: float | None,
    models: Mapping[str, Sums],
    counts: tuple[int, int],
    p_value: float,
    level: float,
) -> DomainVerdict:
    positions = models["merged"]["positions"]
    change = mean_of_positions(models["merged"]["cross_entropy"] - models["pretrained"]["cross_entropy"], positions)
    won, lost = counts
    told = p_value <= level and (won - lost) * change.value < 0
    return DomainVerdict(
        name=name,
        classes=classes,
        examples=len(positions),
        tokens=int(positions.sum()),
        one_length=bool((positions == positions[0]).all()),
        models={model: _figures(sums, text_bytes) for model, sums in models.items()},
        difference=change,
        recovered=_recovered(models),
        won=won,
        lost=lost,
        p_value=p_value,
        word=NEUTRAL if not told else SERVED if won > lost else HURT,
    )


def _figures(sums: Sums, text_bytes: float | None) -> TokenFigures:
    loss, wrong = (mean_of_positions(sums[name], sums["positions"]) for name in ("cross_entropy", "wrong"))
    bits = float(sums["cross_entropy"].sum()) / math.log(2)
    return TokenFigures(
        cross_entropy=loss,
        by_example=Estimate.of_mean(_means(sums)),
        perplexity=perplexity(loss.value),
        bits_per_byte=None if text_bytes is None else bits / text_bytes,
        accuracy=Estimate(1.0 - wrong.value, wrong.stderr, wrong.n, wrong.status),
    )


def _recovered(models: Mapping[str, Sums]) -> Estimate | None:
    """Return the share of the expert's gain that is kept, in means over tokens; its error by the delta method."""
    base, expert, merge = (models[name]["cross_entropy"] for name in ("pretrained", "expert", "merged"))
    room = float((base - expert).sum())
    if room <= 0:
        return None
    share = float((base - merge).sum()) / room
    positions = models["expert"]["positions"]
    rest = mean_of_positions(base - merge - share * (base - expert), positions)
    return Estimate(share, rest.stderr * float(positions.sum()) / room, len(base), "estimated")


def sentence(view: View, part: TokenSection) -> str:
    """To how many domains the merge did good and harm, how well it predicts, measured and certified."""
    words = [task.word for task in part.tasks]
    served, neutral, hurt = (words.count(word) for word in (SERVED, NEUTRAL, HURT))
    at = {m: mean(task.models[m].cross_entropy.value for task in part.tasks) for m in MODELS}
    worst = part.worst
    text = (
        f"Of {len(words)} domain{'s' if len(words) > 1 else ''} {served} {'is' if served == 1 else 'are'} served, "
        f"{neutral} neutral and {hurt} hurt below pretrained. A token of the test texts costs the merge "
        f"{at['merged']:.3f} nats (mean over the domains: perplexity {number(perplexity(at['merged']))}; pretrained "
        f"{at['pretrained']:.3f}, experts {at['expert']:.3f}); worst is {worst.name}: merge − pretrained "
        f"{signed_estimate(worst.difference)} nats"
    )
    certificates = view.part(TokenCertificates)
    if certificates and certificates.rows:  # the first, not the smallest: to choose among statements would cost δ
        first = certificates.rows[0]
        text += (
            f"; certified: {first.name}, at most {first.value:.3f} nats by {first.equation} with n = {first.n} "
            f"examples, δ = {first.delta:g} (test: {first.test_error:.3f})"
        )
    return text + "."


def table(view: View, part: TokenSection) -> Table:
    """Return the domains, a row each."""
    title = f"{view.label}: what the merge did, cross-entropy of a test token (nats), perplexity"
    table = Table(title=plain(title, "table.title"))
    bits = all(task.models["merged"].bits_per_byte is not None for task in part.tasks)
    names = ("domain", "tokens", *MODELS, "Δ to pretrained", "gain kept %", *(("bits a byte",) * bits), "verdict")
    for name in names:
        table.add_column(name, justify="left" if name in ("domain", "verdict") else "right")
    for task in part.tasks:
        three = [f"{m.cross_entropy.value:.3f}  {number(m.perplexity)}" for m in (task.models[k] for k in MODELS)]
        kept = "–" if task.recovered is None else percent_estimate(task.recovered, 0)
        cells = (f"{task.models['merged'].bits_per_byte:.3f}",) if bits else ()
        table.add_row(
            plain(task.name), str(task.tokens), *three, signed_estimate(task.difference), kept, *cells, task.word
        )
    at = [percent(mean(task.models[m].accuracy.value for task in part.tasks)) for m in MODELS]
    table.caption = plain(
        f"right tokens, mean over domains: {at[0]} % pretrained, {at[1]} % experts, {at[2]} % merge; "
        f"α-weighted {estimate(part.risk)} nats over tokens, {estimate(part.risk_by_example)} over examples",
        "table.caption",
    )
    return table


def figure(view: View, part: TokenSection) -> Figure:
    """Cross-entropy of a token under pretrained model, expert and merge, a row per domain."""
    from diagnostics.figures import style

    figure = style.new_figure(1.2 + 0.34 * len(part.tasks))
    axes = figure.subplots()
    styles = {"pretrained": (style.ORANGE, "s"), "expert": (style.BLUE, "o"), "merged": (INK, "x")}
    for row, task in enumerate(part.tasks):
        for model, (colour, marker) in styles.items():
            value = task.models[model].cross_entropy
            axes.errorbar(
                value.value, row, xerr=2 * value.stderr if math.isfinite(value.stderr) else 0, color=colour,
                marker=marker, markersize=5, linestyle="", capsize=2, label=None if row else model,
            )  # fmt: skip
    axes.set_yticks(range(len(part.tasks)), [style.named(task.name) for task in part.tasks])
    axes.invert_yaxis()
    axes.set_xlim(0, None)
    axes.set_xlabel("cross-entropy of a test token (nats, ± 2 s.e. over examples)")
    style.legend_below(figure, axes, 3)
    return figure


def assumptions(parts: Sequence[tuple[View, TokenSection]]) -> Sequence[Assumption]:
    """Say what the words rest on."""
    level = parts[0][1].level
    return (
        Assumption(
            "served, neutral, hurt",
            f"exact two-sided paired test of examples, Holm over domains, level {level:g}",
            "examples whose mean cross-entropy falls against those where it rises, and the difference has that sign",
        ),
    )


SECTION = Section(
    kind=TokenSection,
    compute=compute,
    title="What the merge did to every domain",
    link="domains",
    how=("22",),
    table=table,
    figures={"tokens": Drawn(figure)},
    sentence=sentence,
    assumptions=assumptions,
    scored={"position"},
)

"""Whether a merge served a task or hurt it: the pretrained model, the expert and the merge on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from bounds.types import Estimate, refuse
from merging.commands import paired

Word: TypeAlias = Literal["served", "neutral", "hurt below pretrained"]
SERVED: Word = "served"
NEUTRAL: Word = "neutral"
HURT: Word = "hurt below pretrained"


@dataclass(frozen=True, kw_only=True)
class TaskVerdict:
    """What the merge did to a task, on the test split; accuracies and differences in 0..1, errors paired.

    ``difference`` is merge - pretrained, ``recovered`` the share of the expert's gain over the pretrained model that
    the merge keeps (None where the expert gains nothing). ``won`` examples are right with the merge alone, ``lost``
    with the pretrained model alone. ``p_value`` is that of the exact two-sided test that both are as likely, after
    Holm's correction for all tasks: at or below the report's level the word is not ``neutral``.
    """

    name: str
    pretrained: Estimate
    expert: Estimate
    merge: Estimate
    difference: Estimate
    recovered: Estimate | None
    won: int
    lost: int
    p_value: float
    word: Word


def verdicts(
    names: Sequence[str],
    pretrained: Sequence[Tensor],
    experts: Sequence[Tensor],
    merged: Sequence[Tensor],
    level: float,
) -> tuple[TaskVerdict, ...]:
    """Return one verdict per task. Estimated, each from its task's examples; the words hold together at ``level``.

    Args:
        names: of the T tasks.
        pretrained: per task which examples the pretrained model gets right [N_t], bool.
        experts: the same of the task's own expert.
        merged: the same of the merge.
        level: probability that any word but ``neutral`` is wrong (family-wise, Holm 1979; each test McNemar's, exact).
    """
    counts = [(int((m & ~p).sum()), int((p & ~m).sum())) for p, m in zip(pretrained, merged, strict=True)]
    p_values = paired.holm([sign_test(won, lost) for won, lost in counts])
    rows = zip(names, pretrained, experts, merged, counts, p_values, strict=True)
    return tuple(
        TaskVerdict(
            name=name,
            pretrained=Estimate.of_mean(base),
            expert=Estimate.of_mean(expert),
            merge=Estimate.of_mean(merge),
            difference=Estimate.of_mean(merge.double() - base.double()),
            recovered=paired.gain(*([right.double()[None]] for right in (merge, base, expert))),
            won=won,
            lost=lost,
            p_value=p_value,
            word=NEUTRAL if p_value > level else SERVED if won > lost else HURT,
        )
        for name, base, expert, merge, (won, lost), p_value in rows
    )


def sign_test(won: int, lost: int) -> float:
    """p-value of the exact two-sided sign test: of won + lost fair coins, at least so uneven (McNemar 1947, exact).

    Raises:
        InputError: negative counts.
    """
    if min(won, lost) < 0:
        refuse("discordant examples", expected="counts", got=(won, lost), cure="count again")
    count, term, tail = won + lost, 1, 1
    for k in range(1, min(won, lost) + 1):
        term = term * (count - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / (1 << count))

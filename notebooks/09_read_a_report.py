# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Read a report
#
# **Claim.** A merge that went wrong can be read from its report, down to the expert that did it, and what the report
# advises makes it better. Three kinds of statements are read here
# ([docs/report.md](../docs/report.md#diagnosis), [docs/theory.md](../docs/theory.md#15-ledger-of-the-real-network)):
# words per task, wrong with probability at most $\delta$ in all; advice, every line of which improves the merge with
# probability $1-\delta$; and the ledger, each part certified with its sign:
#
# $$L_\alpha(\theta_m) = \underbrace{\textstyle\sum_j\beta_jL_j(\theta_j)}_{\text{experts' own risk}}
# + \underbrace{\textstyle\sum_{ij}\alpha_i\beta_j[L_i(\theta_j)-L_j(\theta_j)]}_{\text{heterogeneity}}
# + \underbrace{L_\alpha(\theta_m)-\textstyle\sum_j\beta_jL_\alpha(\theta_j)}_{\text{effect of merging the weights}}
# \tag{18}$$
#
# **Proof idea.**
# 1. On examples that merge and pretrained model judge differently each is as likely to be right, if nothing changed:
#    an exact sign test, with Holm's correction for $T$ tasks.
# 2. Of $K$ other merges that were tried, those are printed whose lower limit at $1-\delta/K$ is above 0 (Bonferroni).
# 3. (18) adds up by itself; every part is a weighted mean of a bounded quantity of one example, so that (14) holds.
#
# **World.** Three tasks of `mini8`, task arithmetic at 0.3. One expert's file is broken: its displacement from
# $\theta_0$ is eight times too large, as if the scale $\alpha/r = 8$ of an adapter had been applied twice.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown

from bounds.types import Estimate
from diagnostics import report
from diagnostics.diagnosis import Candidate, Trial, worth_trying
from diagnostics.figures.style import BLUE, GREEN, ORANGE, SKY, VERMILION
from diagnostics.settings import Settings
from diagnostics.study.rows import rate_limits
from merging import TaskVectors, merge
from merging.editing import edited, looked_at
from merging.suites import Suite, load
from merging.task import mean_accuracy

plt.style.use("style.mplstyle")

# %% [markdown]
# ## Numbers to change

# %%
chosen = ["mnist", "kmnist", "quick_draw"]  # tasks of mini8
broken, factor = "kmnist", 8.0  # the expert that was saved wrong, and how often its displacement counts
sizes = {"validation": 80, "test": 150, "calibration": 40}  # examples of each task
layer_examples = 12  # validation examples of each task on which layers are put back to θ_0
scale = 0.3  # of task arithmetic
seed = 0

# %%
whole = load("mini8")
generator = torch.Generator().manual_seed(seed)


def suite_with(factor):
    """The chosen tasks and their experts, one of them ``factor`` times as far from θ_0 as it should be."""
    names = list(whole.task_vectors.names)
    deltas = [
        {k: (factor if name == broken else 1.0) * v for k, v in whole.task_vectors.deltas[names.index(name)].items()}
        for name in chosen
    ]
    return Suite("three of mini8", TaskVectors(whole.task_vectors.base, deltas, chosen), tasks)


named = {task.name: task for task in whole.tasks}
tasks = []
for task in map(named.__getitem__, chosen):
    given = {split: getattr(task, split) for split in sizes}
    few = {split: s.take(torch.randperm(len(s), generator=generator)[: sizes[split]]) for split, s in given.items()}
    tasks.append(task.changed(**few))
suite = suite_with(factor)
artifact = merge("task_arithmetic", suite, scale=scale)
settings = Settings(left_out=sizes["validation"], layer_examples=layer_examples, seed=seed)
sections = ("diagnosis", "ledger", "certificates")
found = report(artifact, suite, settings=settings, sections=sections).data
diagnosis, ledger, certificates = (getattr(found.merges[0], name) for name in sections)

# %% [markdown]
# ## Verdict
#
# Left: what the merge did to each task. Right: what leaving out one expert changes, a row per task: one expert hurts
# the tasks of the others (red), and alone is no good on its own. The verdict's first sentence says it in words.

# %%
places = np.arange(len(chosen))
figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 3.0), width_ratios=[1.3, 1])
for offset, (who, colour) in enumerate((("pretrained", "0.7"), ("expert", SKY), ("merge", VERMILION)), start=-1):
    values = [100 * getattr(task, who).value for task in diagnosis.tasks]
    left.barh(places + 0.27 * offset, values, height=0.25, color=colour, label=who)
left.set_yticks(places, [f"{task.name}\n{task.word.split()[0]}" for task in diagnosis.tasks])
left.invert_yaxis()
left.set(xlabel="test accuracy (%)", xlim=(0, 100))
left.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
changes = 100 * np.array([[change.tasks[i].value for change in diagnosis.without] for i in range(len(chosen))])
right.imshow(changes, cmap="RdBu_r", vmin=-np.abs(changes).max(), vmax=np.abs(changes).max(), aspect="auto")
for (row, column), value in np.ndenumerate(changes):
    ink = "white" if abs(value) > 0.6 * np.abs(changes).max() else "black"
    right.text(column, row, f"{value:+.0f}", ha="center", va="center", color=ink)
right.set(xticks=places, xticklabels=chosen, yticks=[], xlabel="expert left out")
plt.show()
Markdown(
    f"**Figure 1.** Left: accuracy on {sizes['test']} test examples a task. Right: change in points on "
    f"{sizes['validation']} validation examples a task when an expert is left out."
)

# %%
print(found.verdict[0])
for task in diagnosis.tasks:
    print(f"{task.name:<12}{task.word:<22}{task.won:>4} won, {task.lost:>3} lost against the pretrained model, "
          f"p = {task.p_value:.1g}")  # fmt: skip

# %% [markdown]
# ## Cause
#
# Why that expert? The report lists how the task vectors lie. Norms that differ by a factor are the first thing to look
# at: experts of one recipe have norms of one size. No group of layers stands out; what is too long is the whole
# displacement.

# %%
norms = dict(zip(chosen, diagnosis.vectors.norms, strict=True))
figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 3.2), width_ratios=[1, 1.4])
left.barh(places, list(norms.values()), color=[VERMILION if name == broken else BLUE for name in chosen])
left.set(yticks=places, yticklabels=chosen, xlabel="‖τ‖, norm of the task vector")
gains, errors = (100 * np.array([getattr(row.change.mean, x) for row in diagnosis.layers]) for x in ("value", "stderr"))
groups = [row.group.name.replace("transformer.resblocks.", "block ") for row in diagnosis.layers]
right.barh(groups, gains, xerr=errors, color=np.where(gains > 0, VERMILION, BLUE), capsize=2)
right.axvline(0, color="0.4", linewidth=1)
right.set_xlabel("points of mean accuracy when back at θ_0")
for axes in (left, right):
    axes.invert_yaxis()
plt.show()
Markdown(
    f"**Figure 2.** Left: norms; that of {broken} is {norms[broken] / sorted(norms.values())[-2]:.1f} times the next. "
    f"Right: change of mean accuracy ± standard error on {layer_examples} validation examples a task."
)

# %% [markdown]
# ## Advice
#
# The report prints the trials that are better beyond the error of having tried so many. Whoever follows one has chosen
# on the validation labels: the command carries `--candidates`, and certificates of the new merge pay for as many.

# %%
print(f"{diagnosis.tried} other merges tried, {len(diagnosis.advice)} lines:")
for line in diagnosis.advice:
    print(f"   {line.text}: {100 * line.change.value:+.1f} ± {100 * line.change.stderr:.1f} points")
    print(f"      {line.command('in memory')}")
first = next(line for line in diagnosis.advice if line.trial.edit.without)
better = looked_at(edited(artifact, suite, first.trial.edit), first.looked_at)
mended_suite = suite_with(1.0)
mended = merge("task_arithmetic", mended_suite, scale=scale)
before, after, whole_again = (mean_accuracy(tasks, a.merged, "test") for a in (artifact, better, mended))
print(f"test, mean: {100 * before:.1f} %; as advised {100 * after:.1f} %; file mended {100 * whole_again:.1f} %")

# %% [markdown]
# ## Ledger
#
# The *effect of merging the weights* is what one merged model errs more (or, negative, less) than a random expert. The
# certificate of the error moves with it.

# %%
again = report(better, suite, settings=settings, sections=("certificates",)).data.merges[0].certificates
fixed = report(mended, mended_suite, settings=settings, sections=("ledger", "certificates")).data.merges[0]
ledgers = {
    name: next(table for table in book.tables if table.unit == "error")
    for name, book in (("broken", ledger), ("mended", fixed.ledger))
}
for name, table in ledgers.items():
    parts = ", ".join(f"{p.name} {100 * p.observed:+.1f} (≤ {100 * p.value:+.1f})" for p in table.parts)
    print(f"{name}: {parts}; error {100 * table.total.observed:.1f} (≤ {100 * table.total.value:.1f})")
certified = {"broken": certificates, "as advised": again, "mended": fixed.certificates}
for name, part in certified.items():
    row = part.rows[0]
    print(f"{name:<11} α-weighted error at most {100 * row.value:.1f} %, on test {100 * row.test_error:.1f} %; "
          f"{part.models_looked_at} model(s) paid for")  # fmt: skip

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 2.6), width_ratios=[1.4, 1])
values = 100 * np.array([[part.observed for part in table.parts] for table in ledgers.values()])
starts = values.cumsum(1) - values
for index, (colour, height) in enumerate(((BLUE, 0.6), (ORANGE, 0.6), (GREEN, 0.25))):
    name = ledgers["broken"].parts[index].name
    left.barh(list(ledgers), values[:, index], left=starts[:, index], height=height, color=colour, label=name)
left.plot(values.sum(1), range(2), "D", color="black", label="error of the merge")
left.set_xlabel("error on validation (points)")
ends = 100 * np.array([[part.rows[0].test_error, part.rows[0].value] for part in certified.values()])
right.hlines(range(3), *ends.T, color="0.6")
right.plot(ends[:, 0], range(3), "D", color="black", label="test")
right.plot(ends[:, 1], range(3), "<", color=VERMILION, label="certified at most")
right.set_yticks(range(3), list(certified))
right.set_xlabel("α-weighted error (%)")
for axes in (left, right):
    axes.invert_yaxis()
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.3))
plt.show()
Markdown("**Figure 3.** Left: ledger (18), 0-1 error. Right: certificate (14), δ = 0.05, against the test split.")

# %% [markdown]
# ## The wrong version
#
# To follow whatever is better beyond its own error. In a world in which no trial changes anything, each makes as many
# examples right as wrong, by chance. Of as many trials as the report made, one beyond two standard errors is there in
# many such worlds; the rule of the report prints a line in few.

# %%
count, n, worlds = diagnosis.tried, sizes["validation"] * len(chosen), 400
drawn = np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], (worlds, count, n), p=[0.1, 0.8, 0.1])
rules = {"beyond its own error": 0, "as the report has it": 0}
for world in torch.from_numpy(drawn):
    tried = [Candidate("a trial", "", Trial(examples=n), Estimate.of_mean(row)) for row in world]
    rules["beyond its own error"] += any(c.change.value > 2 * c.change.stderr for c in tried)
    rules["as the report has it"] += bool(worth_trying(tried, settings.delta, ""))
for name, printed in rules.items():
    print(f"{name}: a line in {100 * printed / worlds:.0f} % of worlds where nothing is better")

# %% [markdown]
# ## Assertions

# %%
for table in ledgers.values():
    assert abs(sum(p.observed for p in table.parts) - table.total.observed) < 1e-9, "(18) adds up"
    assert all(p.value > p.observed for p in (*table.parts, table.total)), "certainty costs something"
assert again.models_looked_at == diagnosis.tried + 1, "who follows advice pays for all that was tried"
assert rate_limits(rules["as the report has it"], worlds)[0] <= settings.delta, "few lines that do nothing"
if (broken, factor, scale, sizes["validation"], seed) == ("kmnist", 8.0, 0.3, 80, 0):
    assert f"the expert that hurts it most is {broken}" in found.verdict[0]
    assert diagnosis.worst.word == "hurt below pretrained"
    assert first.trial.edit.without == (broken,)
    assert after > before + 0.05, "the advice does on test what it says"
    assert whole_again > after + 0.02, "and to mend the file is better still"
    assert all(part.rows[0].value >= part.rows[0].test_error for part in certified.values())
    assert ledgers["mended"].parts[2].value < 0, "merging the weights helps, and that is certified"
    assert rate_limits(rules["beyond its own error"], worlds)[0] > 0.15, "many, without paying for what was tried"

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
# # Certify a merge
#
# **Claim.** (docs/theory.md, sections [8](../docs/theory.md#8-certificates),
# [11](../docs/theory.md#11-counts-of-unlike-examples) and [12](../docs/theory.md#12-weighted-means-by-one-e-value).)
# From $k$ errors on $n$ fresh labelled examples; from labels on which $\hat\lambda$ may have been learned; without
# labels for the student; for mixtures of tasks: each upper limit fails with probability at most its $\delta$, for the
# real network, whatever it is. The first form of (9) is for i.i.d. examples. What the code computes is (13), which
# differs from it at $k = n-1$ alone (for $\delta < 1/4$) and needs independence only, as of splits drawn class by class
# or of tasks pooled.
#
# $$e \le \mathrm{Beta}^{-1}(1-\delta;\,k+1,\,n-k),\qquad
# e \le \mathrm{kl}^{-1}\bigl(\tfrac kn\bigm|\tfrac{\ln(1/\delta)}n\bigr) \tag{9}$$
#
# $$e(Q) \le \mathrm{kl}^{-1}\Bigl(\mathrm{kl}^{-1}\bigl(\hat e_m\bigm|\tfrac{\ln(1/\delta')}m\bigr)\Bigm|
# \tfrac{\mathrm{KL}+\ln(2\sqrt n\,G/\delta)}n\Bigr),\qquad
# \mathrm{KL} = \frac{\lVert\hat\lambda-\lambda_{\rm prior}\rVert^2}{2s^2} \tag{10}$$
#
# $$\mathrm{err}_\alpha(\text{student}) \le \sum_t\alpha_t\bigl(\overline{\mathrm{err}}_t(\text{teacher}_t)
# + \overline{\Pr}_t[\text{student's label} \ne \text{teacher's}]\bigr) \tag{11}$$
#
# $$\textstyle\sum_t\frac{n_t}n\,e_t \le \mathrm{kl}^{-1}\bigl(\hat e\bigm|\tfrac{\ln(1/\delta)}n\bigr)
# \quad\text{for the pooled rate } \hat e \tag{12}$$
#
# $$\textstyle\sum_t\alpha_te_t \le \inf\bigl\{e \ge e_0:\ \prod_t\prod_i
# \bigl(1+\nu\tfrac{\alpha_tn}{n_t}(e+o_t-X_{ti})\bigr) \ge \tfrac1\delta\bigr\} \tag{14}$$
#
# **Proof idea.**
# 1. The limit is the largest $e$ whose lower tail at $k$ still has mass $\delta$; a Chernoff bound gives the kl form,
#    and Hoeffding's comparison carries both over to examples of different error: (13). For weights $\alpha$ the product
#    in (14) has mean at most 1 at the truth, and Markov's inequality does the rest.
# 2. PAC-Bayes-kl over $T\cdot L$ coefficients, not over the network's weights; Chernoff once more for the $m$ draws.
# 3. A student's error is the teacher's error or a disagreement, and a disagreement needs no label.
#
# **World.** For (9), (11), (12), (14): the average of three experts of `mini8`; validation and test images are the
# population, from which samples are drawn with replacement, so that every population error is exact. For (10): suite
# `toy`, where learning $\lambda$ anew on every sample takes no time.

# %%
import math
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown
from scipy.stats import binom

from bounds.certificates import (
    BoundedSample,
    Count,
    choose_constants,
    coefficient_kl,
    coefficient_pac_bayes,
    disagreement,
    held_out,
    mixture,
    pooled,
    weighted_mean,
)
from diagnostics.figures.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from diagnostics.study.certificates import gibbs_mean
from diagnostics.study.rows import rate_limits
from diagnostics.study.world import sample_counts
from merging import TaskVectors, merged
from merging.suites import load, toy
from merging.task import score

plt.style.use("style.mplstyle")

# %% [markdown]
# ## Numbers to change

# %%
chosen = ["quick_draw", "blood_cells", "pneumonia"]  # tasks of mini8
sizes = (16, 50, 160, 500, 1600)  # n_t: examples of each task
population = 600  # images of each task, at most
delta = 0.05  # failure probability of every certificate
draws = 300  # independent samples
scale = 0.2  # s of (10)
looks = 400  # m: draws of λ of (10)
seed = 0

# %%
whole = load("mini8")
places = [[task.name for task in whole.tasks].index(name) for name in chosen]
vectors = TaskVectors(whole.task_vectors.base, [whole.task_vectors.deltas[i] for i in places], chosen)
average = merged(vectors, torch.full((len(chosen), 1), 1 / len(chosen)))
alpha = [1 / len(chosen)] * len(chosen)
error, teacher_error, differ = [], [], []
for index, place in enumerate(places):
    task, expert = whole.tasks[place], vectors.expert(index)
    images = torch.cat([task.validation.inputs, task.test.inputs])[:population]
    labels = torch.cat([task.validation.labels, task.test.labels])[:population]
    student, teacher = (score(task.forward, theta, images).argmax(-1) for theta in (average, expert))
    pairs = ((student, labels), (teacher, labels), (student, teacher))
    for values, (one, other) in zip((error, teacher_error, differ), pairs, strict=True):
        values.append(float((one != other).double().mean()))
    print(f"{task.name:<14}{len(labels):>6} images: error of merge {error[-1]:.3f}, of expert {teacher_error[-1]:.3f}, "
          f"they differ on {differ[-1]:.3f}")  # fmt: skip
truth = float(np.mean(error))

# %% [markdown]
# ## From labels and without
#
# The number of errors among $n_t$ i.i.d. images is binomial, so samples of any size are cheap. With labels: one
# certificate per task ((13) at $\delta/T$), one for all (pooled, (13): weights $n_t/n$ only), or one e-value for any
# weights (14), whose constants come from 64 other images a task. The last is what a report's verdict quotes. Without
# labels of the student's own: (11) also pays for $2T$ statements, and cannot get below the experts' error plus the
# disagreement.


# %%
def halves(n, counts):
    """Counts of disagreements, counts of the experts' errors."""
    return [[Count(k, n) for k in half] for half in (counts[: len(chosen)], counts[len(chosen) :])]


def counted(errors, n):
    """One sample per task: n losses of which so many are 1."""
    return [BoundedSample(values=(torch.arange(n) < k).double()) for k in errors]


def weighted(n, errors):
    """(14) with the constants that are best for the pilot."""
    return weighted_mean(counted(errors, n), alpha, delta, constants[n]).value


def exact_failure_rate(error, n, method):
    """Pr[(9) < error] by enumeration of the number of errors."""
    limits = np.array([held_out(k, n, delta, method).value for k in range(n + 1)])
    return float(binom.pmf(np.arange(n + 1), n, error)[limits < error].sum())


certify = {
    "(12) per task": lru_cache(None)(lambda n, k: mixture([Count(e, n) for e in k], alpha, delta).value),
    "(12) pooled": lru_cache(None)(lambda n, k: pooled([Count(e, n) for e in k], delta).value),
    "(14) α-weighted": lru_cache(None)(weighted),
    "(11) no labels": lru_cache(None)(lambda n, k: disagreement(*halves(n, k), alpha, delta).value),
}
generator = np.random.default_rng(seed)
pilot = counted(generator.binomial(64, error).tolist(), 64)
constants = {n: choose_constants(pilot, counted([0] * len(chosen), n), alpha, delta) for n in sizes}
limits = {name: [] for name in certify}
for n in sizes:
    counts = generator.binomial(n, [*error, *differ, *teacher_error], (draws, 3 * len(chosen))).tolist()
    for name, make in certify.items():
        used = slice(len(chosen), None) if "no labels" in name else slice(len(chosen))
        limits[name].append([make(n, tuple(k[used])) for k in counts])
limits = {name: np.array(values) for name, values in limits.items()}
print("n_t     " + "".join(f"{name:>18}" for name in limits) + "   mean limit, and how often it fails")
for index, n in enumerate(sizes):
    row = "".join(f"{v[index].mean():>11.3f}{(v[index] < truth).mean():>7.3f}" for v in limits.values())
    print(f"{n:<8}{row}")
tails = [exact_failure_rate(truth, 50, method) for method in ("clopper-pearson", "kl")]
print(f"(9) at n = 50, error {truth:.3f}: exact failure rate {tails[0]:.4f} (Clopper-Pearson), {tails[1]:.4f} (kl)")

# %%
figure, axes = plt.subplots(figsize=(5.6, 3.2))
styles = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (PURPLE, "v", ":"), (GREEN, "^", "-."))
for offset, ((name, values), (colour, marker, line)) in enumerate(zip(limits.items(), styles, strict=True)):
    low, high = np.quantile(values, (0.05, 0.95), axis=1)
    mean = values.mean(1)
    where = np.array(sizes) * 1.06 ** (offset - 1.5)
    bars = (np.maximum(mean - low, 0), np.maximum(high - mean, 0))
    axes.errorbar(where, mean, bars, color=colour, marker=marker, linestyle=line, capsize=2, label=name)
axes.axhline(truth, color="black", linewidth=1.2, label="true error")
without = np.mean(teacher_error) + np.mean(differ)
axes.axhline(without, color="0.4", linestyle=":", label="experts' error + disagreement")
axes.set(xscale="log", xlabel="n_t, examples of each task", ylabel="probability of error", ylim=(0, 1))
axes.set_xticks(sizes, [f"{n}" for n in sizes])
axes.minorticks_off()
figure.legend(loc="outside right center")
plt.show()
Markdown(
    f"**Figure 1.** Certificates of the averaged model on {len(chosen)} tasks of mini8 (δ = {delta}): mean and 5–95 % "
    f"range over {draws} samples. True error {truth:.3f}; limit of (11) {without:.3f}."
)

# %% [markdown]
# ## Coefficient space
#
# (10) lets $\hat\lambda$ be learned on the very labels that certify it; (9) needs labels that learning did not touch,
# here half of them. (10) is about the merge with random coefficients $N(\hat\lambda, s^2I)$, not about $\hat\lambda$.
# The list of priors is $\lambda = 1/T$ and $\lambda = 1$, so $G = 2$. Giving up half of the labels is the cheaper price
# here: (10) pays for the KL, for $2\sqrt n$ and for the $m$ draws. For labels that learning did not touch (10) is never
# needed: with a draw of $\lambda$ of its own for every example, (13) certifies the random network as well
# ([section 13](../docs/theory.md#13-a-randomised-model-without-pac-bayes)).


# %%
class Learner:
    """The toy suite with one coefficient a task, learned by cross-entropy on many samples at once."""

    def __init__(self, overlap):
        suite = toy.build(overlap=overlap, seed=seed)
        self.vectors = suite.task_vectors
        splits = [[task.validation, task.test] for task in suite.tasks]
        inputs = [torch.cat([part.inputs for part in parts]) for parts in splits]
        labels = [torch.cat([part.labels for part in parts]) for parts in splits]
        self.tasks = [(task.forward, x, y) for task, x, y in zip(suite.tasks, inputs, labels, strict=True)]
        self.size = sum(map(len, labels))

    def per_example(self, lambda_, measure):
        """``measure``(scores, labels) of every example of the population, for many λ [D, T]: [D, N]."""
        stacked = self.vectors.stacked
        theta = {k: b + torch.einsum("dt,t...->d...", lambda_, stacked[k]) for k, b in self.vectors.base.items()}
        parts = [
            measure(torch.vmap(lambda p, f=f, x=x: f(p, x))(theta), y.expand(len(lambda_), -1))
            for f, x, y in self.tasks
        ]
        return torch.cat(parts, 1)

    def samples(self, n, count):
        """How often each example of the population is in each of ``count`` i.i.d. samples [count, N]."""
        return torch.from_numpy(generator.multinomial(n, [1 / self.size] * self.size, count)).double()

    def learn(self, counts):
        """λ̂ [D, T] after 40 steps of Adam from 1/T."""
        lambda_ = torch.full((len(counts), 3), 1 / 3, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([lambda_], lr=0.1)
        for _ in range(40):
            adam.zero_grad()
            (self.per_example(lambda_, cross_entropy) * counts).sum().div(counts[0].sum()).backward()
            adam.step()
        return lambda_.detach()


def cross_entropy(scores, labels):
    """Per example [D, N]."""
    return -scores.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def wrong_label(scores, labels):
    """0 or 1 per example [D, N]."""
    return (scores.argmax(-1) != labels).double()


def gibbs_certificate(learner, counts, lambda_):
    """(10) for one sample [N] and λ̂ [3]: half of δ for each of its steps; and e(Q) from as many other draws."""
    noise = torch.from_numpy(generator.normal(size=(2 * looks, 3)))
    errors = learner.per_example(lambda_ + scale * noise, wrong_label)
    n, seen = int(counts.sum()), float((errors[:looks] @ counts).mean() / counts.sum())
    priors = [torch.full((3,), p, dtype=torch.float64) for p in (1 / 3, 1.0)]
    prior = min(priors, key=lambda p: coefficient_kl(lambda_, p, scale))
    bound = coefficient_pac_bayes(seen, n, lambda_, prior, scale, delta=delta / 2, draws=looks, grid_size=2)
    return bound.value, float(errors[looks:].mean())


learner, few = Learner(overlap=0.3), 25
learned = {}
for n in sizes[1:]:
    counts = learner.samples(n, few)
    gibbs = np.array([gibbs_certificate(learner, c, m) for c, m in zip(counts, learner.learn(counts), strict=True)])
    first, second = learner.samples(n // 2, few), learner.samples(n - n // 2, few)
    error_of_half = learner.per_example(learner.learn(first), wrong_label)
    split = [held_out(int(k), n - n // 2, delta).value for k in (error_of_half * second).sum(1)]
    learned[n] = (gibbs[:, 0], np.array(split), gibbs[:, 1], error_of_half.mean(1).numpy())
    row = "  ".join(f"{v.mean():.3f}" for v in learned[n])
    print(f"n = {n:<5} (10), (9) on a half, e(Q), error of the model learned on a half:  {row}")

# %% [markdown]
# ## The wrong version
#
# Three ways to certify too much: (9) on the examples that $\lambda$ was learned on (three coefficients and 15 examples
# suffice); the best of 20 equally good merges, erring independently, at $\delta$ instead of $\delta/20$ (there the
# failure rate is known exactly); KL/2 in (10), which needs a world that makes (10) tight: as many coefficients as
# examples, each of which decides one input, and labels at random, so that all is overfitting.

# %%
hard, own = Learner(overlap=0.9), 15
counts = hard.samples(own, draws)
own_errors = hard.per_example(hard.learn(counts), wrong_label)
limit = np.array([held_out(int(k), own, delta).value for k in (own_errors * counts).sum(1)])
failed = {"(9), own examples": limit < own_errors.mean(1).numpy()}
fresh = np.array([held_out(int(k), own, delta).value for k in (own_errors * hard.samples(own, draws)).sum(1)])
failed["(9), fresh examples"] = fresh < own_errors.mean(1).numpy()
best = generator.binomial(200, truth, (draws, 20)).min(1)
for name, models in (("(9), best of 20, no union", 1), ("(9), best of 20, δ/20", 20)):
    failed[name] = np.array([held_out(int(k), 200, delta, models_looked_at=models).value for k in best]) < truth
exact = 1 - (1 - exact_failure_rate(truth, 200, "clopper-pearson")) ** 20
cells = 4000
plus, minus = sample_counts(generator, cells, np.full(cells, 0.5), draws // 3)
means = gibbs_mean(plus, minus, 1.0)
right = torch.special.ndtr(torch.from_numpy(means)).numpy()
seen = (plus * (1 - right) + minus * right).sum(-1) / cells
for name, factor in (("(10), KL/2", math.sqrt(2)), ("(10)", 1.0)):
    values = [
        coefficient_pac_bayes(e, cells, m, torch.zeros_like(m), factor, delta=delta, draws=None).value
        for e, m in zip(seen.tolist(), torch.from_numpy(means), strict=True)
    ]
    failed[name] = np.array(values) < 0.5

# %%
figure, (left, axes) = plt.subplots(1, 2, figsize=(6.8, 2.8), width_ratios=[1.2, 1])
names = ("(10), all n", "(9), half of n", "e(Q)")
for index, (name, (colour, marker, line)) in enumerate(zip(names, (*styles[:2], ("black", "D", ":")), strict=True)):
    means_at = [learned[n][index].mean() for n in sizes[1:]]
    left.plot(sizes[1:], means_at, color=colour, marker=marker, linestyle=line, label=name)
left.set(xscale="log", xlabel="n, all tasks together", ylabel="probability of error", ylim=(0, 1))
left.set_xticks(sizes[1:], [f"{n}" for n in sizes[1:]])
left.minorticks_off()
left.legend()
for place, values in enumerate(failed.values()):
    low, high = rate_limits(int(values.sum()), len(values))
    colour, hatch = ((VERMILION, "///"), (BLUE, ""))[place % 2]
    axes.barh(place, values.mean(), color=colour, hatch=hatch, edgecolor="white")
    axes.hlines(place, low, high, color="black")
axes.axvline(delta, color="0.4", linestyle=":")
axes.set_yticks(range(len(failed)), list(failed))
axes.invert_yaxis()
axes.set(xlabel="failure rate", xlim=(0, 1.02))
plt.show()
Markdown(
    f"**Figure 2.** Left: certificates of learned coefficients (mean of {few} samples, toy suite, δ = {delta}). Right: "
    f"failure rates over {draws} samples ({draws // 3} for (10)) with one-sided 95 % limits; hatched are the wrong "
    f"versions, dotted is δ. Best of 20 without the union: {failed[list(failed)[2]].mean():.3f}, exactly {exact:.3f}."
)

# %% [markdown]
# ## Assertions

# %%
for name, values in limits.items():
    for at_size in values:
        assert rate_limits(int((at_size < truth).sum()), draws)[0] <= delta, name
    assert (np.diff(values.mean(1)) < 0).all(), "more examples, tighter certificates"
for n in sizes:
    for method in ("clopper-pearson", "kl"):
        assert exact_failure_rate(truth, n, method) <= delta, "(9) against the exact tail"
assert truth <= without, "(11) in the population"
assert (limits["(14) α-weighted"][1:].mean(1) < limits["(12) per task"][1:].mean(1)).all(), "no delta/T"
for certified, halved, of_q, of_half in learned.values():
    assert (certified >= of_q).mean() >= 0.9, "(10)"
    assert (halved >= of_half).mean() >= 0.8, "(9) on the other half"
simulated = failed["(9), best of 20, no union"].mean()
assert abs(simulated - exact) <= 4 * math.sqrt(exact * (1 - exact) / draws), "as the exact rate says"
for name in ("(9), fresh examples", "(9), best of 20, δ/20", "(10)"):
    assert rate_limits(int(failed[name].sum()), len(failed[name]))[0] <= delta, name
if (draws, delta, seed) == (300, 0.05, 0):
    for name in ("(9), own examples", "(9), best of 20, no union", "(10), KL/2"):
        assert rate_limits(int(failed[name].sum()), len(failed[name]))[0] > delta, f"{name} must be caught"

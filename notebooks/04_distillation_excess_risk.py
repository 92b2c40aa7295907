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
# # Theorem 3: distillation controls the excess risk
#
# **Claim.** ([docs/theory.md, section 7](../docs/theory.md#7-theorem-3-distillation-controls-the-excess-risk).) A cost
# $c(k,y)\in[0,M]$; a probabilistic classifier $q$ has risk $R_t(q) = E\sum_k q(k|x)\,c(k,y)$, the smallest possible is
# $R_t^\star$. Teachers $p_t$, student $q$, all at temperature 1:
#
# $$\begin{aligned}
# R_\alpha(q)-R_\alpha^\star &\le \sum_t\alpha_t[R_t(p_t)-R_t^\star] + M\sum_t\alpha_tE_x\mathrm{TV}(p_t,q)\\
# &\le \sum_t\alpha_t[R_t(p_t)-R_t^\star] + M\min\Bigl\{\sqrt{\tfrac12K},\ \sqrt{1-e^{-K}}\Bigr\},\qquad
# K = \sum_t\alpha_tE_x\mathrm{KL}(p_t\Vert q).
# \end{aligned} \tag{8}$$
#
# **Proof idea.**
# 1. For each $x$ and $y$: $\sum_k (q-p)(k)\,c(k,y) \le M\sum_k\max(q-p, 0)(k) = M\,\mathrm{TV}(p,q)$.
# 2. $\mathrm{TV} \le \sqrt{\mathrm{KL}/2}$ (Pinsker) and $\mathrm{TV} \le \sqrt{1-e^{-\mathrm{KL}}}$
#    (Bretagnolle–Huber).
# 3. Both are concave in KL, so Jensen moves the means over $x$ and $t$ inside.
#
# **World.** Three tasks of 80 inputs each, with known $P_t(y|x)$: the Bayes risk and every risk below are exact. A
# small network is fine-tuned on labels of each task; the experts are the teachers. One student merges them (two
# coefficients a task, learned by `merging`), another may change every weight. The cost is 0-1, $c(k,y) = 1[k \ne y]$,
# so that $M = 1$ and $R_t^\star = 1 - E\max_y P_t(y|x)$.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from scipy.optimize import brentq

from bounds.distillation import bretagnolle_huber, kl, ladder, pinsker, total_variation
from bounds.theorems import argmax_error, theorem3
from bounds.types import Estimate, Sample
from diagnostics.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from merging import Task, TaskVectors, merged
from merging.learned import LearnedSettings, init, prepare, update
from merging.learned.objectives import OBJECTIVES

plt.style.use("style.mplstyle")

# %% [markdown]
# ## Numbers to change

# %%
sharpness = 3.0  # of the true P(y|x): 0 is pure noise, large is nearly deterministic
labelled = 600  # examples that each expert is fine-tuned on
overlap = 3  # of its 6 coordinates, how many a task shares with the next one: 0 are separate tasks
steps = 120  # of the distillation
temperatures = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]  # of the divergence that is minimised
seed = 0

# %%
tasks, classes, own, hidden, inputs = 3, 4, 6, 24, 80
alpha = (1 / 3, 1 / 3, 1 / 3)
generator = torch.Generator().manual_seed(seed)
stride = own - overlap
features = own + stride * (tasks - 1)


def gaussian(*shape):
    """Independent standard normal numbers."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def forward(theta, x):
    """Scores [N, C] of a network with one hidden layer."""
    return torch.tanh(x @ theta["first"].T) @ theta["second"].T


theta_0 = {"first": gaussian(hidden, features) / features**0.5, "second": 0.5 * gaussian(classes, hidden) / hidden**0.5}
populations, truth = [], []
for t in range(tasks):
    x = torch.zeros(inputs, features, dtype=torch.float64)
    x[:, stride * t : stride * t + own] = gaussian(inputs, own)
    populations.append(x)
    truth.append((sharpness * F.normalize(x) @ gaussian(features, classes)).softmax(-1))

experts, suite = {}, []
for t, (x, probability) in enumerate(zip(populations, truth, strict=True)):
    chosen = torch.randint(inputs, (labelled,), generator=generator)
    labels = torch.multinomial(probability[chosen], 1, generator=generator)[:, 0]
    theta = dict(theta_0)
    for _ in range(150):
        slope = torch.func.grad(lambda w, x=x[chosen], y=labels: F.cross_entropy(forward(w, x), y))(theta)
        theta = {name: value - 0.5 * slope[name] for name, value in theta.items()}
    experts[f"task {t}"] = theta
    some = Sample(x[chosen], labels)  # merging asks for all four splits; it reads the unlabelled one only
    suite.append(Task(f"task {t}", forward, "abcd", train=some, calibration=Sample(x), validation=some, test=some))

task_vectors = TaskVectors.from_experts(theta_0, experts)
teachers = [forward(theta, x) for theta, x in zip(experts.values(), populations, strict=True)]


def risks(scores):
    """R_t of the softmax classifier, per task: exact."""
    return [float((s.softmax(-1) * (1 - p)).sum(-1).mean()) for s, p in zip(scores, truth, strict=True)]


bayes = [1 - float(p.amax(-1).mean()) for p in truth]
teacher_excess = float(np.mean(np.array(risks(teachers)) - np.array(bayes)))
print("Bayes risk    ", "  ".join(f"{r:.3f}" for r in bayes))
print("teachers' risk", "  ".join(f"{r:.3f}" for r in risks(teachers)))


# %%
def measure(scores, temperature=1.0):
    """The student's true excess risk and every bound on it, as numbers."""
    made = ladder(teachers, scores, alpha, surrogate_temperature=temperature)
    known = [[Estimate(r) for r in values] for values in (risks(teachers), bayes)]
    return {
        "excess": float(np.mean(np.array(risks(scores)) - np.array(bayes))),
        "K": made.divergence.total.value,
        "K_u": made.surrogate.total.value,
        "TV": made.total_variation.total.value,
        "bound TV": theorem3(made, *known).value,
        "bound min": theorem3(made, *known, rung="minimum").value,
        "wrong": teacher_excess + pinsker(made.surrogate.total).value,
    }


def columns(rows):
    """List of measurements -> name -> array."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


# %% [markdown]
# ## Ladder
#
# The rungs on random pairs of distributions. Pinsker is the smaller of the two curves below $K \approx 1.594$,
# Bretagnolle–Huber above; Pinsker passes 1 at $K = 2$. The first rung has no slack: for the cost that charges $M$
# wherever $q > p$, the difference of the risks *is* $M\,\mathrm{TV}$.

# %%
pairs = 3000
widths = torch.rand(pairs, 1, generator=generator, dtype=torch.float64) * 4
p, q = widths * gaussian(pairs, 3), widths * gaussian(pairs, 3)
divergence, variation = kl(p, q), total_variation(p, q)
worst_cost = (q.softmax(-1) > p.softmax(-1)).double()
worst_difference = ((q.softmax(-1) - p.softmax(-1)) * worst_cost).sum(-1)
grid = np.linspace(0.0, 4.0, 201)
curves = {
    "Pinsker": [pinsker(Estimate(k)).value for k in grid],
    "Bretagnolle–Huber": [bretagnolle_huber(Estimate(k)).value for k in grid],
}
crossing = brentq(lambda k: pinsker(Estimate(k)).value - bretagnolle_huber(Estimate(k)).value, 1.0, 2.0)

# %%
figure, axes = plt.subplots(figsize=(5.2, 3.0))
axes.plot(divergence, variation, ".", color="0.6", markersize=2, label="random pairs, 3 classes")
axes.plot(grid, curves["Pinsker"], color=BLUE, label=r"Pinsker $\sqrt{K/2}$")
axes.plot(grid, curves["Bretagnolle–Huber"], color=ORANGE, linestyle="--", label=r"Bretagnolle–Huber $\sqrt{1-e^{-K}}$")
axes.axvline(crossing, color="0.4", linestyle=":", linewidth=1)
axes.set(xlabel="KL(p‖q)  (nats)", ylabel="TV(p, q)", xlim=(0, 4), ylim=(0, 1.3))
figure.legend(loc="outside lower center", ncols=3)
plt.show()
Markdown(
    f"**Figure 1.** Total variation (no unit) against KL of {pairs} random pairs of distributions over 3 classes; the "
    f"dotted line is where the curves cross, at K = {crossing:.3f}."
)

# %% [markdown]
# ## Distillation
#
# Both students start from plain averaging and minimise $K$ at temperature 1 on all inputs. Watch three things. The true
# excess risk is below both bounds all the time. With every weight free, $K \to 0$ leads to the *teachers'* excess risk
# and not to 0. With two coefficients a task, $K$ stops where the experts disagree, and the excess risk with it.


# %%
def merging_path(temperature):
    """Coefficients learned on unlabelled inputs: measurements after every step."""
    settings = LearnedSettings(
        perturbation="none", granularity="tensor", batch=inputs, examples=inputs, temperature=temperature,
        learning_rate=0.02, seed=seed,
    )  # fmt: skip
    problem = prepare(task_vectors, suite, settings)
    state, rows = init(problem), []
    for _ in range(steps + 1):
        theta = merged(task_vectors, state.coefficients.detach(), problem.blocks)
        rows.append(measure([forward(theta, x) for x in populations], temperature))
        state = update(problem, state)
    return columns(rows)


def free_path():
    """Every weight learned, from the same start, at temperature 1."""
    theta = merged(task_vectors, torch.full((tasks, 1), 1 / tasks, dtype=torch.float64))
    theta = {name: value.clone().requires_grad_() for name, value in theta.items()}
    optimizer, rows = torch.optim.Adam(theta.values(), lr=0.02), []
    for _ in range(steps + 1):
        scores = [forward(theta, x) for x in populations]
        rows.append(measure([s.detach() for s in scores]))
        optimizer.zero_grad()
        sum(OBJECTIVES["kl"](s, t, 1.0) for s, t in zip(scores, teachers, strict=True)).backward()
        optimizer.step()
    return columns(rows)


paths = {"merge: two coefficients a task": merging_path(1.0), "every weight free": free_path()}

# %%
figure, panels = plt.subplots(2, 2, figsize=(6.8, 4.2), sharex=True, height_ratios=[2.2, 1])
for (upper, lower), (title, path) in zip(panels.T, paths.items(), strict=True):
    upper.plot(path["bound min"], color=BLUE, linestyle="--", label=r"(8), min of the two roots of $K$")
    upper.plot(path["bound TV"], color=SKY, linestyle="-.", label="(8), TV")
    upper.plot(path["excess"], color="black", label=r"true excess risk $R_\alpha(q)-R_\alpha^\star$")
    upper.axhline(teacher_excess, color=GREEN, linestyle=":", label="teachers' excess risk")
    upper.set(title=title, ylim=(0, 0.65))
    lower.plot(path["K"], color=PURPLE)
    lower.set(xlabel="step", ylim=(0, 0.52))
panels[0, 0].set_ylabel("excess prob. of error")
panels[1, 0].set_ylabel("K  (nats)")
figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()
Markdown(
    "**Figure 2.** Minimising K at temperature 1: true excess risk and its bounds (probability of error; exact means "
    f"over {tasks} tasks of {inputs} inputs), and below K (nats)."
)

# %% [markdown]
# ## Temperature
#
# (8) is about temperature 1. A divergence $K_u$ at another temperature $u$ is a training surrogate. In this world the
# hotter ones lead to a smaller true excess risk although they leave a larger $K$ (for every seed from 0 to 5): (8)
# bounds the excess risk and does not rank students. But $K_u$ in the place of $K$ is wrong: it shrinks like $u^{-2}$,
# whatever the student does.

# %%
by_temperature = columns([{name: values[-1] for name, values in merging_path(u).items()} for u in temperatures])
print("   u      K_u        K   excess risk  (8) with K  wrong: K_u")
shown = [by_temperature[name] for name in ("K_u", "K", "excess", "bound min", "wrong")]
for u, *row in zip(temperatures, *shown, strict=True):
    print(f"{u:>4g}" + "".join(f"{value:>9.4f}" for value in row[:2]) + "".join(f"{value:>12.4f}" for value in row[2:]))

# %%
figure, (left, right) = plt.subplots(1, 2)
left.plot(temperatures, by_temperature["bound min"], color=BLUE, marker="^", linestyle="--", label="(8) with K")
left.plot(temperatures, by_temperature["excess"], color="black", marker="D", label="true excess risk")
left.plot(temperatures, by_temperature["wrong"], "s:", color=VERMILION, label=r"wrong: $K_u$ for $K$")
left.set(ylabel="excess probability of error", ylim=(0, None))
right.plot(temperatures, by_temperature["K"], color=PURPLE, marker="o", label="K, temperature 1")
right.plot(temperatures, by_temperature["K_u"], color=ORANGE, marker="v", linestyle="-.", label=r"$K_u$, minimised")
right.set(ylabel="nats", ylim=(0, None))
for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.set_xticks(temperatures, [f"{u:g}" for u in temperatures])
    axes.set_xlabel("temperature u of the training divergence")
    axes.legend()
plt.show()
Markdown(
    f"**Figure 3.** The merge after {steps} steps at each temperature. Left: true excess risk (probability of error, "
    f"exact over {tasks} × {inputs} inputs), the bound, and what the surrogate would promise. Right: both divergences "
    "(nats)."
)

# %% [markdown]
# ## The wrong version
#
# Besides the surrogate above: leaving out the teachers' own excess risk (a student that copies them exactly would be
# Bayes), and an unbounded cost. For the latter two confident distributions suffice: total variation $10^{-3}$, and an
# excess cross-entropy that grows without limit as the student gets more confident.

# %%
copy = {name: values[-1] for name, values in paths["every weight free"].items()}
print(f"a student that copies: TV {copy['TV']:.3f}, excess risk {copy['excess']:.3f}, teachers' {teacher_excess:.3f}")
labels_given_x = torch.tensor([0.9, 0.1], dtype=torch.float64)
teacher = torch.tensor([[0.999, 0.001]], dtype=torch.float64).log()
unbounded = []
for power in (4, 6, 12, 24):
    student = torch.tensor([[0.0, -power * np.log(10.0)]], dtype=torch.float64)
    excess_ce = float((labels_given_x * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum())
    root = pinsker(Estimate(float(kl(teacher, student)))).value
    row = (float(total_variation(teacher, student)), root, excess_ce)
    unbounded.append(row)
    print(f"confidence 1-10^-{power}: TV {row[0]:.4f}, sqrt(K/2) {row[1]:.4f}, excess cross-entropy {row[2]:.3f} nats")

# %% [markdown]
# ## Assertions

# %%
assert (variation <= (divergence / 2).sqrt() + 1e-12).all(), "Pinsker"
assert (variation <= (-torch.expm1(-divergence)).sqrt() + 1e-12).all(), "Bretagnolle–Huber"
assert torch.allclose(worst_difference, variation, atol=1e-12), "the first rung is attained"
assert abs(crossing - 1.594) < 0.001

for path in (*paths.values(), by_temperature):
    assert (path["excess"] <= path["bound TV"] + 1e-9).all(), "(8), total variation"
    assert (path["bound TV"] <= path["bound min"] + 1e-9).all(), "(8), the lower rungs"
free = paths["every weight free"]
assert free["K"][-1] < 0.2 * free["K"][0], "imitation succeeds"
assert abs(free["excess"][-1] - teacher_excess) <= free["TV"][-1] + 1e-9, "and leads to the teachers"


def argmax_errors(scores):
    """Error of the argmax, per task: exact."""
    return [float(1 - p.gather(1, s.argmax(-1, keepdim=True)).mean()) for s, p in zip(scores, truth, strict=True)]


average = merged(task_vectors, torch.full((tasks, 1), 1 / tasks, dtype=torch.float64))
student = [forward(average, x) for x in populations]
limit = argmax_error(ladder(teachers, student, alpha), [Estimate(e) for e in argmax_errors(teachers)])
assert np.mean(argmax_errors(student)) <= limit.value + 1e-9, "err(argmax q) <= err(argmax p) + disagreement"

assert copy["excess"] > copy["TV"], "without the teachers' own excess risk (8) fails"
assert all(excess_ce > root for _, root, excess_ce in unbounded[1:]), "(8) says nothing about cross-entropy"
if (sharpness, labelled, overlap, temperatures[-1]) == (3.0, 600, 3, 16.0):
    assert by_temperature["excess"][-1] > by_temperature["wrong"][-1] + 0.02, "the surrogate is no bound"
    at_one = temperatures.index(1.0)
    assert by_temperature["K"].argmin() == at_one, "temperature 1 leaves the smallest K"
    assert by_temperature["excess"][-1] < by_temperature["excess"][at_one] - 0.02, "and not the smallest excess risk"

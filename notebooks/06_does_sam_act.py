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
# # Does SAM act?
#
# **Claim.** Flatness enters the bound through a gradient term
# ([docs/theory.md, section 2](../docs/theory.md#2-lemma-1-flatness-aware-pac-bayes-for-one-task)),
#
# $$L(Q) \le A\Bigl[\hat L(Q) + \frac{\mathrm{KL}+\ln(1/\delta)}{\eta n}\Bigr]
# + B\,E_D E_Q\langle\nabla\ell,\Sigma\nabla\ell\rangle, \tag{2}$$
#
# and SAM is meant to make it small: with $g = \nabla_\lambda L(\lambda)$ it descends $\nabla_\lambda L(\lambda +
# \epsilon)$, $\epsilon = \rho\,g/\lVert g\rVert$, two passes a step. If the merged weights are made once per step and
# *not rebuilt* between the two passes, SAM does not act: $\lambda$ is that of the plain optimiser, to the last bit, for
# every $\rho$.
#
# **Proof idea.**
# 1. The loss sees $\lambda$ only through $\theta_\lambda$, so the gradient at $\lambda+\epsilon$ needs
#    $\theta_{\lambda+\epsilon}$.
# 2. A stale cache gives the second pass the same weights, batch and graph: the same gradient. The displacement of
#    $\lambda$ is undone before the optimiser steps. Nothing is left of it.
# 3. On a quadratic $L = \frac12\lambda^\top A\lambda - b^\top\lambda$ the second gradient must be
#    $A(\lambda+\epsilon)-b$ with $\lVert\epsilon\rVert = \rho$: a closed form that tells the two apart.
#
# **World.** Tasks of suite `mini8`; a coefficient for each task and tensor, learned by distillation from the experts on
# a few unlabelled images.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown

from bounds.flatness import gradient_second_moment, sharpness
from bounds.types import Estimate, weighted_sum
from diagnostics.figures.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from diagnostics.terms.linear import losses, subsample
from merging import TaskVectors, merged
from merging.learned import LearnedSettings, init, prepare, update
from merging.learned.objectives import OBJECTIVES
from merging.learned.perturbations import PERTURBATIONS, Displacement, Pass, Step
from merging.suites import load
from merging.task import score

plt.style.use("style.mplstyle")

# %% [markdown]
# ## Numbers to change

# %%
chosen = ["mnist", "bangla_digits", "quick_draw"]  # tasks of mini8
steps = 6  # of the optimiser
examples, batch = 12, 4  # unlabelled images of each task (a multiple of the second), and how many a step sees
rho = 0.07  # radius of SAM
large_rho = 0.7  # a radius that nobody could overlook
learning_rate = 0.03
held_out = 10  # test images of each task for risk and flatness
seed = 0

# %%
whole = load("mini8")
places = [[task.name for task in whole.tasks].index(name) for name in chosen]
vectors = TaskVectors(whole.task_vectors.base, [whole.task_vectors.deltas[i] for i in places], chosen)
tasks = [whole.tasks[i] for i in places]
alpha = [1 / len(tasks)] * len(tasks)

# %% [markdown]
# ## Closed form
#
# A quadratic in the weights, $\frac12\theta^\top H\theta - c^\top\theta$ at $\theta = M\lambda$, so that
# $A = M^\top HM$, $b = M^\top c$. The rows of `merging.learned.perturbations` see the network only through
# passes; here the passes are exact.

# %%
generator = torch.Generator().manual_seed(seed)
task_matrix, root, c = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((9, 4), (9, 9), (9,)))
hessian = root @ root.T


def step_at(lambda_, rebuild=True):
    """A step of a row on the quadratic; the norms of the displacements in λ and θ that it asks for are kept."""
    asked = []

    def at(displacement=None, objective=None):
        shift = displacement or Displacement()
        asked.append(shift)
        moved = lambda_ if shift.coefficients is None or not rebuild else lambda_ + shift.coefficients
        theta = task_matrix @ moved[:, 0] + (0 if shift.weights is None or not rebuild else shift.weights["w"])
        slope = hessian @ theta - c
        return Pass(theta.new_zeros(4), (task_matrix.T @ slope)[:, None], {"w": slope})

    return Step(
        at=at,
        coefficients=lambda_,
        rho=rho,
        penalty=0.0,
        every=1,
        base={"w": c},
        blocks={"model": ("w",)},
        generators=[torch.Generator() for _ in lambda_],
        generator=torch.Generator(),
        memory={},
    ), asked


def closed_form(row, lambda_, rho):
    """ε and the gradient that the row must descend; λ [4, 1]."""
    slope = hessian @ task_matrix @ lambda_[:, 0] - c
    g = task_matrix.T @ slope
    flat = lambda_[:, 0]
    if row == "weights":
        epsilon = rho * slope / slope.norm()
        return epsilon, task_matrix.T @ (slope + hessian @ epsilon)
    unit = g.norm() if row == "coefficients" else (flat.abs() * g).norm()
    epsilon = rho * (g if row == "coefficients" else flat**2 * g) / unit
    return epsilon, g + task_matrix.T @ hessian @ task_matrix @ epsilon


spaces = ("coefficients", "coefficients-adaptive", "weights")
some = torch.randn(4, 1, generator=generator, dtype=torch.float64)
plain_gradient = PERTURBATIONS["none"].descend(step_at(some)[0]).gradient
closed = {}
print("row                     |eps|   descended - closed form   descended - g   the same with a stale cache")
for row in spaces:
    step, asked = step_at(some)
    descended = PERTURBATIONS[row].descend(step).gradient
    epsilon, expected = closed_form(row, some, rho)
    stale = PERTURBATIONS[row].descend(step_at(some, rebuild=False)[0]).gradient
    differences = [float((x - y).norm()) for x, y in ((descended[:, 0], expected), (descended, plain_gradient))]
    closed[row] = (asked[1].norm, float(epsilon.norm()), *differences, float((stale - plain_gradient).norm()))
    print(f"{row:<22}{asked[1].norm:>7.4f}{differences[0]:>19.0e}{differences[1]:>22.4f}{closed[row][-1]:>20.4f}")
step, asked = step_at(torch.zeros(4, 1, dtype=torch.float64))
at_zero = PERTURBATIONS["coefficients-adaptive"].descend(step)
print(f"adaptive SAM at lambda = 0: |eps| = {asked[1].norm}, so its first step is plain")

# %% [markdown]
# ## The wrong version
#
# A loop written from scratch: plain Adam, SAM with a stale cache (wrong), SAM that rebuilds. The last must give what
# the library's row gives.

# %%
common = {
    "steps": steps, "examples": examples, "batch": batch, "cached": examples // batch,
    "learning_rate": learning_rate, "granularity": "tensor", "seed": seed,
}  # fmt: skip
problem = prepare(vectors, tasks, LearnedSettings(perturbation="none", **common))


def distillation(theta, step):
    """Mean over tasks of KL(expert ‖ merge) on the step's batch."""
    index = torch.arange(step * batch, (step + 1) * batch) % examples
    parts = [
        OBJECTIVES["kl"](forward(theta, x[index]), teacher[index], 1.0)
        for forward, x, teacher in zip(problem.forwards, problem.inputs, problem.teacher_scores, strict=True)
    ]
    return sum(parts) / len(parts)


def by_hand(radius=0.0, rebuild=False):
    """λ after every step of Adam; with a radius SAM in λ, on the weights merged at the start of the step or anew."""
    lambda_ = torch.full((len(tasks), len(problem.blocks)), 1 / len(tasks), requires_grad=True)
    adam, path = torch.optim.Adam([lambda_], lr=learning_rate), []
    for step in range(steps):
        theta = merged(vectors, lambda_, problem.blocks)  # the cache
        before = lambda_.detach().clone()
        if radius:
            (g,) = torch.autograd.grad(distillation(theta, step), lambda_, retain_graph=not rebuild)
            lambda_.data = before + radius * g / g.norm()
        if rebuild:
            theta = merged(vectors, lambda_, problem.blocks)
        (lambda_.grad,) = torch.autograd.grad(distillation(theta, step), lambda_)
        lambda_.data = before
        adam.step()
        path.append(lambda_.detach().clone())
    return path


def by_row(row, radius=rho, start=None):
    """λ after every step of a row of the library, and the norm of its perturbation at every step."""
    settings = LearnedSettings(perturbation=row, rho=radius, init=start, **common)
    made = replace(problem, settings=settings, perturbation=PERTURBATIONS[row])
    state, path = init(made), []
    for _ in range(steps):
        state = update(made, state)
        path.append(state.coefficients.detach().clone())
    return path, state.history["perturbation_norm"]


plain = by_hand()
stale = {radius: by_hand(radius) for radius in (rho, large_rho)}
true = {row: by_row(row) for row in spaces}
true_large, _ = by_row("coefficients", large_rho)
rebuilt = by_hand(rho, rebuild=True)
_, from_zero = by_row("coefficients-adaptive", start=0.0)


def apart(path, other=plain):
    """max |λ - λ'| after every step."""
    return np.array([float((a - b).abs().max()) for a, b in zip(path, other, strict=True)])


for radius, path in stale.items():
    print(f"stale cache, rho = {radius}: largest |lambda - plain| = {apart(path).max()}")
by_library = apart(true["coefficients"][0]).max()
print(f"rebuilt,     rho = {rho}: {apart(rebuilt).max():.4f}; the library's row: {by_library:.4f}")

# %%
figure, (left, right) = plt.subplots(1, 2)
count = range(1, steps + 1)
left.plot(count, apart(true_large), color=ORANGE, marker="s", linestyle="-.", label=f"true SAM, ρ = {large_rho}")
left.plot(count, apart(true["coefficients"][0]), color=BLUE, marker="^", label=f"true SAM, ρ = {rho}")
left.plot(count, apart(stale[large_rho]), color=VERMILION, marker="x", linestyle="--", label=f"stale, ρ = {large_rho}")
left.set(xlabel="step", ylabel="max |λ − λ of plain Adam|")
right.plot(count, true["coefficients"][1], color=BLUE, marker="^", label="SAM")
right.plot(count, true["coefficients-adaptive"][1], color=GREEN, marker="o", label="adaptive, from λ = 1/T")
right.plot(count, from_zero, color=PURPLE, marker="v", linestyle=":", label="adaptive, from λ = 0")
right.set(xlabel="step", ylabel="‖ε‖ in λ", ylim=(-0.002, None))
for axes in (left, right):
    axes.legend()
plt.show()
Markdown(
    f"**Figure 1.** Left: how far λ gets from plain Adam's; the stale cache stays at {apart(stale[large_rho]).max():g} "
    f"exactly. Right: norm of the perturbation (ρ = {rho}); adaptive SAM from λ = 0 begins with {from_zero[0]:g}."
)

# %% [markdown]
# ## Flatness
#
# Whether SAM pays is another question. Before and after learning, on held-out labelled images: the risk; its increase
# along the first-order step of radius $\rho$ in $\lambda$ and in $\theta$; and what (2) pays for, the mean of
# $\lVert\nabla\ell\rVert^2$. Read the differences between rows against the standard errors: a few steps on a few
# images show that SAM acts, not that it helps.


# %%
def measure(lambda_):
    """Risk, sharpness in λ and in θ, E‖∇ℓ‖² of a merge: α-weighted means over tasks, with errors over images."""
    theta, rows = merged(vectors, lambda_, problem.blocks), []
    for task in tasks:
        sample = subsample(task.test, held_out, seed)
        found = [sharpness(task.forward, theta, sample, rho, directions=vectors.deltas, blocks=problem.blocks)]
        found.append(sharpness(task.forward, theta, sample, rho))
        risk = losses(score(task.forward, theta, sample.inputs), sample.labels)
        squares = gradient_second_moment(task.forward, theta, sample)
        rows.append([Estimate.of_mean(risk), *(Estimate(f.increase) for f in found), Estimate.of_mean(squares)])
    return [weighted_sum(column, alpha) for column in zip(*rows, strict=True)]


finals = {"averaging": torch.full_like(plain[0], 1 / len(tasks)), "plain": plain[-1]}
finals |= {row: path[-1] for row, (path, _) in true.items()}
flat = {name: measure(lambda_) for name, lambda_ in finals.items()}
labels = ("risk (nats)", "sharpness in λ\n(nats)", "sharpness in θ\n(nats)", "E‖∇ℓ‖² (nats²)")
print(" " * 26 + "risk  sharp., λ  sharp., θ    E‖∇ℓ‖²")
for name, values in flat.items():
    print(f"{name:<21}" + "".join(f"{value.value:>11.4f}" for value in values))

# %%
figure, panels = plt.subplots(1, 4, figsize=(6.8, 2.6), sharey=True)
colours = ("0.4", "black", BLUE, GREEN, ORANGE)
for index, (axes, label) in enumerate(zip(panels, labels, strict=True)):
    for height, (values, colour) in enumerate(zip(flat.values(), colours, strict=True)):
        axes.errorbar(values[index].value, height, xerr=values[index].stderr, color=colour, marker="o", capsize=2)
    axes.set(xlabel=label, xlim=(0, 1.15 * max(v[index].value + v[index].stderr for v in flat.values())))
panels[0].set_yticks(range(len(flat)), ["averaging", "plain Adam", "SAM, λ", "adaptive, λ", "SAM, θ"])
panels[0].invert_yaxis()
plt.show()
Markdown(
    f"**Figure 2.** Averaging, and {steps} steps of plain Adam and of SAM in three spaces, ρ = {rho}; "
    f"n = {held_out} test images of each of {len(tasks)} tasks, bars ± 1 standard error (the sharpness has none)."
)

# %% [markdown]
# ## Assertions

# %%
for row, (norm, expected_norm, from_closed, from_plain, stale_difference) in closed.items():
    assert from_closed < 1e-9, "the second gradient is A (lambda + eps) - b"
    assert abs(norm - expected_norm) < 1e-12, "of the stated norm"
    assert from_plain > 0.0, "and not g"
    assert stale_difference == 0.0, "which is what a stale cache descends"
    assert row == "coefficients-adaptive" or abs(norm - rho) < 1e-12
assert asked[1].norm == 0.0, "adaptive SAM cannot leave lambda = 0"
assert from_zero[0] == 0.0, "nor in the network"
for path in stale.values():
    assert all(torch.equal(a, b) for a, b in zip(path, plain, strict=True)), "plain Adam, to the last bit"
assert apart(rebuilt, true["coefficients"][0]).max() < 1e-3, "rebuilt by hand is the library's row"
for path, _ in true.values():
    assert apart(path).max() > 0.0, "true SAM acts"
if (chosen, steps, learning_rate, held_out, seed) == (["mnist", "bangla_digits", "quick_draw"], 6, 0.03, 10, 0):
    assert flat["plain"][0].value < flat["averaging"][0].value, "learning lowers the risk"

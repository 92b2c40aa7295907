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
# # Lemmas 2–4 and the transfer error: what linearity in θ gives, and what breaks without it
#
# **Claim.** ([docs/theory.md, section 4](../docs/theory.md#4-from-posteriors-to-one-model-in-the-linearised-network)
# and [section 6](../docs/theory.md#6-leaving-the-linear-regime-the-transfer-error).) For the linearised network
# $f^{\rm lin}_\theta(x) = f_{\theta_0}(x) + J(x)(\theta-\theta_0)$, $K = JJ^\top$, and a convex, $\gamma$-smooth loss:
#
# - **Lemma 2.** $L^{\rm lin}(m) \le L^{\rm lin}(Q)$ for every $Q$ with mean $m$; for cross-entropy (CE) the difference
#   is $E_Q E_x \mathrm{KL}(p_m\Vert p_\theta)$.
# - **Lemma 3.** $\hat L^{\rm lin}(N(m,\sigma^2 I)) \le \hat L^{\rm lin}(m) + \tfrac\gamma2\sigma^2\hat\kappa$,
#   $\hat\kappa = \mathrm{mean}_i\,\mathrm{tr}\,K(x_i,x_i)$; an equality if the loss is exactly $\gamma$-quadratic.
# - **Lemma 4.** $0 \le \hat L^{\rm lin}(m') - \hat L^{\rm lin}(m) - \langle\nabla\hat L^{\rm lin}(m), m'-m\rangle
#   \le \tfrac\gamma2\,\mathrm{mean}_i\lVert J(x_i)(m'-m)\rVert^2$; for CE the middle is
#   $E_x\mathrm{KL}(p_m\Vert p_{m'})$.
# - **Transfer error.** For the network itself, whatever the labels,
#
# $$L_\alpha(\theta) \le L^{\rm lin}_\alpha(\theta) + \varepsilon^+_\alpha(\theta),\qquad
# \varepsilon^+_\alpha = \sum_t\alpha_t E_{D_t}\max_k\ln\frac{p^{\rm lin}_k}{p_k}. \tag{7}$$
#
# **Proof idea.**
# 1. $f^{\rm lin}$ is affine in $\theta$, so the loss is convex in $\theta$ and the first-order term of
#    $\ell(s') = \ell(s) + \langle\nabla\ell(s), s'-s\rangle + D_\ell(s',s)$ averages to 0 under a $Q$ of mean $m$.
# 2. Convex: $D_\ell \ge 0$. Smooth: $D_\ell(s',s) \le \tfrac\gamma2\lVert s'-s\rVert^2$, and the mean of
#    $\lVert Ju\rVert^2$ over $u\sim N(0,\sigma^2 I)$ is $\sigma^2\,\mathrm{tr}\,JJ^\top$. CE: $D_\ell(s', s) =
#    \mathrm{KL}(p(s)\Vert p(s'))$.
# 3. $\ell(f,y)-\ell(f^{\rm lin},y) = \ln(p^{\rm lin}_y/p_y)$ is at most the largest entry over all labels.
#
# **World.** A perceptron with one hidden layer, $x \mapsto W_2\tanh(W_1x)$, started at small weights (so that it must
# leave the linear regime) and trained on one task of three classes. A second task labels the same inputs otherwise.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from torch import nn

from bounds import ntk
from bounds.autodiff import differentiable, functional
from bounds.distillation import kl
from bounds.linearize import jvp_scores, linearize, residual, transfer_error
from diagnostics.figures.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION

plt.style.use("style.mplstyle")

# %% [markdown]
# ## Numbers to change
#
# The smaller `scale`, the further the network has to move away from its linearisation. With `scale = 3` and
# `steps = 10` the network is nearly linear and most of the wrong versions below stop failing: the last cell says which.

# %%
scale = 0.4  # standard deviation of the initial weights, times the square root of a layer's inputs
steps = 60  # steps of gradient descent that make the expert
width = 16  # hidden units
sigmas = [0.05, 0.1, 0.2, 0.4, 0.8]  # widths of the posterior N(m, sigma^2 I)
draws = 400  # posterior draws, in pairs m + u, m - u, so that their mean is m exactly
seed = 0

# %%
features, classes, examples = 6, 3, 40
generator = torch.Generator().manual_seed(seed)


def gaussian(*shape):
    """Independent standard normal numbers."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


module = nn.Sequential(nn.Linear(features, width, bias=False), nn.Tanh(), nn.Linear(width, classes, bias=False))
forward, names = functional(module.double())
theta_0 = {name: scale * gaussian(*value.shape) / value.shape[1] ** 0.5 for name, value in names.items()}
x = gaussian(examples, features)
y, other_y = ((x @ gaussian(features, classes)).argmax(-1) for _ in range(2))


def loss(scores, labels=y):
    """Mean cross-entropy of scores [..., N, C] in nats."""
    return float(F.cross_entropy(scores.flatten(0, -2), labels.repeat(scores.shape[:-2].numel())))


expert = dict(theta_0)
for _ in range(steps):
    slope = torch.func.grad(lambda theta: F.cross_entropy(forward(theta, x), y))(expert)
    expert = {name: value - 0.5 * slope[name] for name, value in expert.items()}
tau = {name: expert[name] - theta_0[name] for name in theta_0}
linear = linearize(forward, theta_0)


def along(s, direction=tau):
    """Return theta_0 + s * direction."""
    return {name: theta_0[name] + s * direction[name] for name in theta_0}


print(f"cross-entropy at theta_0 {loss(forward(theta_0, x)):.3f}")
print(f"at the expert: network {loss(forward(expert, x)):.3f}, linearised {loss(linear(expert, x)):.3f} nats")

# %% [markdown]
# ## Lemma 2
#
# Under draws in pairs the mean of $Q$ is $m$ exactly, so the equality must hold to rounding. In the other order the
# divergence is another number.

# %%
half = [{name: gaussian(*value.shape) for name, value in tau.items()} for _ in range(draws // 2)]
scores_0, tangents = jvp_scores(forward, theta_0, x, [tau, *half])
at_mean = scores_0 + tangents[0]  # f^lin at m = the expert
noise = torch.cat([tangents[1:], -tangents[1:]])  # J(x)u for u ~ N(0, I): [draws, N, C]
table = {"increase": [], "kl": [], "reversed": []}
for sigma in sigmas:
    moved = at_mean + sigma * noise
    pairs = (at_mean.repeat(draws, 1), moved.flatten(0, 1))
    table["increase"].append(loss(moved) - loss(at_mean))
    table["kl"].append(float(kl(*pairs).mean()))
    table["reversed"].append(float(kl(*reversed(pairs)).mean()))
print("sigma    L(Q) - L(m)   E KL(p_m || p_theta)   E KL(p_theta || p_m), wrong order")
for sigma, *row in zip(sigmas, *table.values(), strict=True):
    print(f"{sigma:<8g} {row[0]:<13.6f} {row[1]:<22.6f} {row[2]:.6f}")

# %% [markdown]
# **The wrong version: the network itself.** Turning the sign of every hidden unit gives a twin expert that computes the
# same function. The mean of the two is the zero network: averaging two perfect experts leaves nothing. The linearised
# network cannot do that.

# %%
twin = {name: -value for name, value in expert.items()}
middle = {name: torch.zeros_like(value) for name, value in expert.items()}
twins = {}
for name, model in (("network", forward), ("linearised", linear)):
    ends = [loss(model(theta, x)) for theta in (expert, twin)]
    twins[name] = (sum(ends) / 2, loss(model(middle, x)))
    print(f"{name:<11} mean of the twins' risks {twins[name][0]:.3f}, risk of their mean {twins[name][1]:.3f} nats")

# %% [markdown]
# ## Lemma 3
#
# A quadratic loss ($\gamma = 1$) makes the lemma an equality. The points $m \pm \sqrt P\,\sigma\,e_p$ have mean $m$ and
# covariance $\sigma^2 I$, so they average a quadratic as the Gaussian does, without Monte-Carlo error. For CE
# ($\gamma = 1/2$) the kernel may be centred, because CE cannot see the all-ones direction; for the quadratic loss it
# may not.

# %%
kappa = {
    name: float(ntk.trace(forward, theta_0, x, centred=name == "centred", vectorize=True).values.mean())
    for name in ("raw", "centred")
}
axes_of_theta = []
for name, value in theta_0.items():
    for index in range(value.numel()):
        unit = torch.zeros_like(value)
        unit.view(-1)[index] = 1.0
        axes_of_theta.append({name: unit})
_, by_axis = jvp_scores(forward, theta_0, x, axes_of_theta)
sigma_points = len(axes_of_theta) ** 0.5 * torch.cat([by_axis, -by_axis])


def squared_error(scores):
    """Half the mean squared distance of scores to one-hot labels: 1-quadratic in the scores."""
    return float(0.5 * (scores - F.one_hot(y, classes)).square().sum(-1).mean())


quadratic = [squared_error(at_mean + sigma * sigma_points) - squared_error(at_mean) for sigma in sigmas]
stacked = {name: torch.stack([u[name] for u in half] + [-u[name] for u in half]) for name in tau}
score_all = torch.func.vmap(lambda theta: forward(theta, x))


def network_increase(m, sigma):
    """L(Q) - L(m) of the network itself under N(m, sigma^2 I)."""
    moved = score_all({name: m[name] + sigma * stacked[name] for name in m})
    return loss(moved) - loss(forward(m, x))


network = [network_increase(expert, sigma) for sigma in sigmas]
kernel_term = {name: [0.5 * sigma**2 * value for sigma in sigmas] for name, value in kappa.items()}
limit = [0.5 * value for value in kernel_term["centred"]]  # gamma = 1/2

# %%
figure, (left, right) = plt.subplots(1, 2)
noise_symbol = r"$\frac{\gamma}{2}\sigma^2\hat\kappa$"
left.loglog(sigmas, kernel_term["raw"], "-", color=BLUE, label=f"{noise_symbol}, γ = 1")
left.loglog(sigmas, kernel_term["centred"], "--", color=VERMILION, label=r"wrong: $\hat\kappa$ centred")
left.loglog(sigmas, quadratic, "o", color=BLUE, label=r"$f^{\rm lin}$")
left.set(title="squared error", xlabel="posterior width σ", ylabel="risk of Q − risk of m")
left.legend()
right.loglog(sigmas, limit, "-", color=BLUE, label=f"{noise_symbol}, γ = ½, centred")
right.loglog(sigmas, table["increase"], "o", color=BLUE, label=r"$f^{\rm lin}$")
right.loglog(sigmas, table["kl"], "x", color=GREEN, markersize=8, label=r"$E\,{\rm KL}(p_m\Vert p_\theta)$, Lemma 2")
right.loglog(sigmas, network, "s--", color=VERMILION, label="wrong: the network")
right.set(title="cross-entropy", xlabel="posterior width σ", ylabel="L(Q) − L(m)  (nats)")
right.legend()
for axes in (left, right):
    axes.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
    axes.minorticks_off()
plt.show()
Markdown(
    f"**Figure 1.** Lemma 3 at the expert (n = {examples} training inputs, P = {len(axes_of_theta)} parameters; CE "
    f"from {draws} posterior draws). Left: equality for squared error (in squared units of the scores), and the "
    "illegitimate centring. Right: for CE the linearised network stays below the line and on Lemma 2; the network does "
    "not, because its kernel at the expert is no longer the one at θ_0."
)

# %% [markdown]
# ## Lemma 4
#
# From $m = \theta_0$ along $\tau$, at $\theta_0 + s\tau$. The tangent is common to network and linearisation.

# %%
path = np.linspace(-0.5, 1.5, 41)
slope = torch.func.grad(lambda theta: F.cross_entropy(linear(theta, x), y))(theta_0)
slope_along_tau = float(sum((slope[name] * tau[name]).sum() for name in tau))
curvature = float(ntk.quadratic_form(forward, theta_0, x, tau).mean())  # mean ||ΠJτ||²
start = loss(scores_0)
tangent = start + path * slope_along_tau
upper = tangent + 0.25 * path**2 * curvature
linear_scores = [scores_0 + s * tangents[0] for s in path.tolist()]
linear_risk = np.array([loss(scores) for scores in linear_scores])
bregman = np.array([float(kl(scores_0, scores).mean()) for scores in linear_scores])
network_scores = [forward(along(s), x) for s in path.tolist()]
network_risk = np.array([loss(scores) for scores in network_scores])
print(f"L^lin is tangent + E KL to 1e-12: {bool(np.abs(linear_risk - tangent - bregman).max() < 1e-12)}")
print(f"the network is below its tangent by up to {(tangent - network_risk).max():.3f} nats")

# %% [markdown]
# ## Transfer error
#
# $e^+(x;\theta) = \max_k\ln(p^{\rm lin}_k/p_k)$ needs no labels: the same number serves the second task, on which the
# expert's confidence is misplaced. Without it, "$L(f) \le L^{\rm lin}$" is false there.

# %%
errors = [transfer_error(f, lin) for f, lin in zip(network_scores, linear_scores, strict=True)]
epsilon = np.array([float(e.positive.mean()) for e in errors])
other_network = np.array([loss(scores, other_y) for scores in network_scores])
other_linear = np.array([loss(scores, other_y) for scores in linear_scores])
every_label = [lin.log_softmax(-1) - f.log_softmax(-1) for f, lin in zip(network_scores, linear_scores, strict=True)]

# %%
figure, (left, right) = plt.subplots(1, 2)
left.plot(path, linear_risk, color=BLUE, label=r"$L^{\rm lin}$")
left.plot(path, tangent, color=GREEN, linestyle=":", label=r"tangent at $\theta_0$")
left.plot(path, upper, color=GREEN, linestyle="-.", label=r"tangent $+\frac{\gamma}{2}\,$mean$\Vert J s\tau\Vert^2$")
left.plot(path, network_risk, color=VERMILION, linestyle="--", label="wrong: the network's L")
left.set(title="task of the expert", ylim=(-0.8, 3.0))
left.legend()
right.plot(path, other_linear + epsilon, color=BLUE, label=r"$L^{\rm lin} + \varepsilon^+$")
right.plot(path, other_network, color="black", linestyle="--", label="the network's L")
right.plot(path, other_linear, color=VERMILION, linestyle=":", label=r"wrong: $L^{\rm lin}$ without $\varepsilon^+$")
right.set(title="second task, same inputs")
right.legend()
for axes in (left, right):
    axes.set(xlabel=r"position $s$ on $\theta_0 + s\tau$", ylabel="cross-entropy (nats)")
plt.show()
Markdown(
    f"**Figure 2.** Mean cross-entropy over {examples} inputs along the task vector (s = 0: pretrained, s = 1: "
    "expert). Left: Lemma 4 holds for the linearised network; the network falls below the tangent, so its risk is not "
    "convex in θ. Right: (7) on a task with other labels; ε⁺ is computed without them."
)

# %% [markdown]
# ## Where it breaks
#
# Two descriptions of the distance to the linear regime, beside what they announce. Residual: $\lVert f_\theta -
# f^{\rm lin}_\theta\rVert/\lVert f_\theta - f_{\theta_0}\rVert$. Drift: $1 - \cos(K_{\theta_0}, K_\theta)$. Lemma 3 at
# $m = \theta_0 + s\tau$ asks the ratio on the left to stay below 1.

# %%
stations = np.array([0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.25])
probe = 0.1  # sigma
ratio = {"network": [], "f^lin": []}
residuals, drifts = [], []
for s in stations.tolist():
    m, lin = along(s), scores_0 + s * tangents[0]
    allowed = 0.25 * probe**2 * kappa["centred"]
    ratio["network"].append(network_increase(m, probe) / allowed)
    ratio["f^lin"].append((loss(lin + probe * noise) - loss(lin)) / allowed)
    residuals.append(residual(forward(m, x), lin, scores_0))
    drifts.append(ntk.drift(forward, theta_0, m, x).rotation.value)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 2.6))
left.axhline(1.0, color="0.4", linewidth=1)
left.plot(stations, ratio["network"], color=VERMILION, marker="s", linestyle="--", label="network")
left.plot(stations, ratio["f^lin"], color=BLUE, marker="o", label=r"$f^{\rm lin}$")
left.set(xlabel="position s of the anchor m", ylabel=r"increase / $\frac{\gamma}{2}\sigma^2\hat\kappa$", ylim=(0, None))
left.legend()
right.plot(stations, residuals, color=PURPLE, marker="o", label="residual")
right.plot(stations, drifts, color=ORANGE, marker="s", linestyle="--", label="kernel drift (rotation)")
right.set(xlabel="position s", ylabel="dimensionless", ylim=(0, None))
right.legend()
plt.show()
Markdown(
    f"**Figure 3.** Left: L(Q) − L(m) over what Lemma 3 allows, at σ = {probe:g} ({draws} draws, n = {examples}); "
    "above 1 the lemma fails. Right: residual and drift of the kernel on the same path (both dimensionless, 0 in the "
    "linear regime). They describe and bound nothing."
)

# %% [markdown]
# ## Attention
#
# All of the above needs forward-mode derivatives. PyTorch's fused attention kernels have none, and the fast path of
# `nn.MultiheadAttention` goes around the switch between them. Every function of `bounds` that differentiates does it
# inside `bounds.autodiff.differentiable()`; this is what happens without it.


# %%
class Tower(nn.Module):
    """One attention layer with a normalised residual, a mean over tokens and a head."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, classes)

    def forward(self, tokens):
        """[N, tokens, 8] -> scores [N, C]."""
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(self.norm(tokens + mixed).mean(1))


torch.manual_seed(seed)
tower, weights = functional(Tower().double())
tokens = gaussian(5, 4, 8)
direction = {name: gaussian(*value.shape) for name, value in weights.items()}


def push():
    """J(x) d by forward mode."""
    return torch.func.jvp(lambda theta: tower(theta, tokens), (weights,), (direction,))[1]


step = 1e-6
ends = [tower({name: value + s * direction[name] for name, value in weights.items()}, tokens) for s in (step, -step)]
by_differences = (ends[0] - ends[1]) / (2 * step)
with differentiable():
    inside = push()
try:
    outside = push()
    print("without the context: a result")
except RuntimeError as error:
    outside = None
    print(f"without the context: {type(error).__name__}")
_, by_package = jvp_scores(tower, weights, tokens, [direction])
results = {"inside the context": inside, "jvp_scores": by_package[0]}
apart = {name: float((result - by_differences).abs().max()) for name, result in results.items()}
for name in apart:
    print(f"{name}: agrees with central differences to 1e-8: {apart[name] < 1e-8}")

# %% [markdown]
# ## Assertions
#
# The lemmas hold whatever the numbers at the top. The wrong versions must fail at the numbers this notebook came with.

# %%
increase, divergence, limit = (np.array(v) for v in (table["increase"], table["kl"], limit))
assert np.allclose(increase, divergence, rtol=1e-9, atol=1e-12), "Lemma 2 is an equality for cross-entropy"
assert (increase >= 0).all()
assert twins["linearised"][1] <= twins["linearised"][0], "Lemma 2 for a mixture of two"
assert np.allclose(quadratic, kernel_term["raw"], rtol=1e-9), "Lemma 3 is an equality for a quadratic loss"
assert (increase <= limit).all(), "Lemma 3"
assert np.allclose(linear_risk, tangent + bregman, rtol=0, atol=1e-10), "Lemma 4 is an equality for cross-entropy"
assert (linear_risk <= upper + 1e-10).all(), "Lemma 4, upper side"
assert (network_risk <= linear_risk + epsilon + 1e-10).all(), "(7), first task"
assert (other_network <= other_linear + epsilon + 1e-10).all(), "(7), second task"
for worst, e in zip(every_label, errors, strict=True):
    assert torch.allclose(worst.amax(-1).clamp(min=0), e.positive, atol=1e-12), "(7) is attained by some label"
assert max(ratio["f^lin"]) <= 1
assert max(apart.values()) < 1e-8, "forward mode through attention, inside the context"
assert outside is None or torch.allclose(outside, by_differences, atol=1e-8), "an error, never a wrong number"

wrong = {
    "KL in the other order": abs(table["reversed"][-1] / divergence[-1] - 1) > 0.05,
    "Lemma 2 for the network": twins["network"][1] > 2 * twins["network"][0],
    "Lemma 3 for the network": max(ratio["network"]) > 1.2,
    "Lemma 3, squared error with a centred kernel": kernel_term["centred"][0] < 0.9 * quadratic[0],
    "Lemma 4 for the network": (network_risk < tangent - 0.01).any(),
    "(7) without the transfer error": (other_network > other_linear + 0.1).any(),
}
for name, failed in wrong.items():
    print(f"{name}: {'fails' if failed else 'does not fail here'}")
assert all(wrong.values()) or (scale, steps, width, seed) != (0.4, 60, 16, 0), "each fails far from the linear regime"

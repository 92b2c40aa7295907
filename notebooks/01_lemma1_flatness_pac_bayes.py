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
# # Lemma 1: flatness-aware PAC-Bayes for one task
#
# **Claim.** ([docs/theory.md, section 2](../docs/theory.md#2-lemma-1-flatness-aware-pac-bayes-for-one-task).)
# $\ell \ge 0$, prior $P$ free of the sample $S$, $\eta$ fixed in advance. With probability at least $1-\delta$ over
# $S$, for all $Q$ at once,
#
# $$L(Q) \le \hat L(Q) + \frac{\mathrm{KL}(Q\Vert P)+\ln(1/\delta)}{\eta n} + \frac\eta2\,E_z E_Q\,\ell^2, \tag{2a}$$
#
# and for Gaussian $Q = N(\mu, \Sigma)$, with $C$ such that $E_z[(E_Q\ell)^2] \le C\,E_z[E_Q\ell]$ and $\eta C < 2$,
#
# $$L(Q) \le A\Bigl[\hat L(Q) + \frac{\mathrm{KL}+\ln(1/\delta)}{\eta n}\Bigr]
# + B\,E_D E_Q\langle\nabla\ell,\Sigma\nabla\ell\rangle,
# \qquad A = \frac1{1-\eta C/2},\quad B = \frac\eta{2-\eta C}. \tag{2}$$
#
# For the linearised network and a $\gamma$-smooth loss the gradient term need not be measured: with
# $\kappa_{\rm op} \ge \sup_x \lambda_{\max}(J\Sigma J^\top)$,
#
# $$L(Q) \le \frac{\hat L(Q) + (\mathrm{KL}+\ln(1/\delta))/(\eta n)}{1-\eta C/2-\eta\gamma\kappa_{\rm op}}. \tag{3}$$
#
# **Proof idea.**
# 1. $E e^{-\eta X} \le \exp(-\eta EX + \tfrac{\eta^2}2 EX^2)$ for $X \ge 0$; multiply over the sample, average over
#    $P$: a supermartingale, above $1/\delta$ with probability at most $\delta$. Change $P$ to $Q$
#    (Donsker–Varadhan): (2a).
# 2. $E_Q\ell^2 = (E_Q\ell)^2 + \mathrm{Var}_Q\,\ell$; Gaussian Poincaré bounds the variance by
#    $E_Q\langle\nabla\ell,\Sigma\nabla\ell\rangle$, the constant $C$ bounds the square. Solve for $L(Q)$: (2).
# 3. Smoothness: $\lVert\nabla_s\ell\rVert^2 \le 2\gamma\ell$, so the gradient term acts like an addition of
#    $2\gamma\kappa_{\rm op}$ to $C$ (for cross-entropy $0.4073\,D^2$, $D^2 = \sup_x\max_{k,k'}
#    (e_k-e_{k'})^\top J\Sigma J^\top(e_k-e_{k'})$): (3).
#
# **World.** A finite population in which every quantity of the population is exact: $x = e_k$ is one of $d$ unit
# vectors, $y = \pm1$, the margin is $y\,\theta_k$, the loss is logistic. $P = N(0, \sigma^2 I)$ and
# $Q = N(\mu, \sigma^2 I)$. (Study world of `diagnostics.study.world`; written as two-class scores
# $(\theta_k/2, -\theta_k/2)$ it has $\kappa_{\rm op} = \sigma^2/2$, $D^2 = \sigma^2$, $\gamma = 1/2$.)

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

from bounds.pac_bayes import best_flatness_bound, empirical_flatness_bound, flatness_bound, lemma1
from bounds.types import Estimate, InputError
from diagnostics.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, TERM_STYLES, VERMILION
from diagnostics.study.rows import rate_limits
from diagnostics.study.world import OneHotLogistic, regularised_mean, sample_counts

plt.style.use("style.mplstyle")

# %% [markdown]
# ## Numbers to change
#
# Change one and run all cells again. What is asserted about the *statements* must hold whatever you choose; the *wrong
# versions* further down have their own setting, because a mutant escapes where the bound is loose.

# %%
delta = 0.05  # failure probability
eta = 0.03  # rate of the bound, fixed in advance
sigma = 10.0  # standard deviation of prior and posterior
cells = 2000  # d, number of distinct inputs
n = 2000  # size of the training sample
positive = 0.5  # probability of the label +1, the same for every input (0.5: nothing to learn, all is overfitting)
draws = 300  # independent training samples
seed = 0


# %% [markdown]
# ## Coverage
#
# For each of many training samples the posterior is the minimiser of $\hat L(Q) + \mathrm{KL}/(\eta n)$. Population
# risk, second moment, $C$ (the ratio itself) and the gradient term are exact, so the only thing that can fail is the
# inequality. A statement is refuted if the one-sided 95 % lower limit of its violation rate exceeds $\delta$.


# %%
def sampled_posteriors(sigma, eta, cells, n, positive, strength, draws, seed):
    """Statistics of the posterior argmin L^ + strength KL/(eta n) on independent samples, all exact."""
    world, label = OneHotLogistic(sigma), np.full(cells, positive)
    plus, minus = sample_counts(np.random.default_rng(seed), n, label, draws)
    return world.draws(regularised_mean(world, plus, minus, strength / eta), plus, minus, label)


def empirical_or_infinite(*arguments, **settings):
    """(3), or infinity where its denominator is not positive."""
    try:
        return empirical_flatness_bound(*arguments, **settings).value
    except InputError:
        return np.inf


def all_bounds(s, sigma, eta, n, delta):
    """(2a), (2) and both forms of (3) on every sample: name -> values [draws]."""
    table = []
    for risk, kl, moment, ratio, gradient in zip(
        s.training_risk, s.divergence, s.second_moment, s.qsb, s.flatness, strict=True
    ):
        own, constant, slope = Estimate(float(risk)), Estimate(float(ratio)), Estimate(float(gradient))
        start = (own, float(kl), n, eta)
        table.append(
            (
                lemma1(*start, Estimate(float(moment)), delta=delta).value,
                flatness_bound(*start, constant, slope, delta=delta).value,
                empirical_or_infinite(*start, constant, Estimate(sigma**2), delta=delta, refined=True),
                empirical_or_infinite(*start, constant, Estimate(sigma**2 / 2), delta=delta),
            )
        )
    return dict(zip(("(2a)", "(2)", "(3), 0.4073 D²", "(3), 2γκ_op"), np.array(table).T, strict=True))


statistics = sampled_posteriors(sigma, eta, cells, n, positive, 1.0, draws, seed)
stated = all_bounds(statistics, sigma, eta, n, delta)


def report(bounds, risk):
    """Print the violation rate of every version with its one-sided 95 % limits."""
    print(f"{'version':<22}{'mean bound':>11}{'mean risk':>11}{'violated':>10}   one-sided 95 % limits")
    for name, values in bounds.items():
        low, high = rate_limits(int((risk > values).sum()), len(risk))
        violated = (risk > values).mean()
        print(f"{name:<22}{values.mean():>11.3f}{risk.mean():>11.3f}{violated:>10.3f}   [{low:.3f}, {high:.3f}]")


report(stated, statistics.risk)

# %% [markdown]
# ## The wrong version
#
# Leave out the Poincaré term, the KL, or the whole complexity term, and (2) fails on nearly every sample. These are
# settings in which the left-out term is larger than the slack of the others (docs/theory.md, section 10, has more of
# them, and says which mutants no coverage study can catch). The second setting fits the noise: $c = 0.05$ in
# $\hat L(Q) + c\,\mathrm{KL}/(\eta n)$.

# %%
fitted = {"eta": 0.05, "n": 2000}
overfitted = {"eta": 0.03, "n": 2000}
on_fitted = sampled_posteriors(10.0, **fitted, cells=2000, positive=0.5, strength=1.0, draws=300, seed=1)
on_overfitted = sampled_posteriors(10.0, **overfitted, cells=2000, positive=0.5, strength=0.05, draws=300, seed=2)


def cut_bounds(s, parts, eta, n, delta=0.05):
    """(2) as stated and without each of the named parts."""
    rows = {"(2) as stated": [], **{f"(2), {part}": [] for part in parts}}
    for risk, kl, ratio, gradient in zip(s.training_risk, s.divergence, s.qsb, s.flatness, strict=True):
        own, constant, slope = Estimate(float(risk)), Estimate(float(ratio)), Estimate(float(gradient))
        full = flatness_bound(own, float(kl), n, eta, constant, slope, delta=delta)
        risk_term, complexity, flatness = (t.estimate.value for t in full.terms)
        left = {
            "no Poincaré term": risk_term + complexity,
            "KL = 0": flatness_bound(own, 0.0, n, eta, constant, slope, delta=delta).value,
            "no complexity": risk_term + flatness,
        }
        rows["(2) as stated"].append(full.value)
        for part in parts:
            rows[f"(2), {part}"].append(left[part])
    return {name: np.array(values) for name, values in rows.items()}


wrong = (
    (cut_bounds(on_fitted, ["no Poincaré term"], **fitted), on_fitted.risk),
    (cut_bounds(on_overfitted, ["KL = 0", "no complexity"], **overfitted), on_overfitted.risk),
)
for rows, risk in wrong:
    report(rows, risk)

# %%
groups = (
    ("as stated", {name: values - statistics.risk for name, values in stated.items()}),
    ("the wrong version", {name: v - risk for rows, risk in wrong for name, v in rows.items() if "stated" not in name}),
)
figure, panels = plt.subplots(1, 2)
jitter = np.random.default_rng(0)
for axes, (title, rows), colour in zip(panels, groups, (BLUE, VERMILION), strict=True):
    for height, slack in enumerate(rows.values()):
        axes.plot(slack, height + jitter.uniform(-0.3, 0.3, len(slack)), ".", color=colour, markersize=2.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvspan(min(-0.02 * axes.get_xlim()[1], axes.get_xlim()[0]), 0.0, color="0.9", zorder=0)
    axes.set_xlabel("bound − L(Q)  (nats)")
    axes.set_title(title)
plt.show()
Markdown(
    f"**Figure 1.** Slack of each version on {draws} independent samples: one dot a sample, n = {n}, d = {cells}, "
    f"σ = {sigma:g}, η = {eta:g}, δ = {delta:g}. Right: (2) with a part left out, in the settings of the cell above "
    "(n = d = 2000, σ = 10, 300 samples a row). Grey: the version is violated."
)

# %% [markdown]
# ## Tightness
#
# How the three terms of (2) move with $n$, with $\sigma$ and with $C$. Now there is something to learn: the label is +1
# with probability 0.9 or 0.1, depending on the input. The expert $\mu_k = \ln\frac{n_k^++1}{n_k^-+1}$ is trained once,
# whatever $\sigma$. $\eta$ comes from a grid that is paid for ($\ln|{\rm grid}|$); the bound is the best of the grid.

# %%
eta_grid = [0.01 * 2**k for k in range(8)]
inputs = 50  # d in this section
label_of = np.where(np.arange(inputs) % 2 == 0, 0.9, 0.1)


def expert_posterior(sigma, n, samples=40, seed=3):
    """Statistics of N(mu, sigma^2 I) around the smoothed log-odds, on a few samples."""
    plus, minus = sample_counts(np.random.default_rng(seed), n, label_of, samples)
    expert = np.log((plus + 1.0) / (minus + 1.0))
    return OneHotLogistic(sigma).draws(expert / sigma, plus, minus, label_of)


def mean_terms(s, n):
    """Terms of (2) at the best eta of the grid, averaged over samples: [3]."""
    rows = []
    for risk, kl, ratio, gradient in zip(s.training_risk, s.divergence, s.qsb, s.flatness, strict=True):
        statistics_of = (Estimate(float(ratio)), Estimate(float(gradient)))
        _, bound = best_flatness_bound(Estimate(float(risk)), float(kl), n, eta_grid, *statistics_of, delta=delta)
        rows.append([t.estimate.value for t in bound.terms])
    return np.mean(rows, axis=0)


sizes = [int(100 * 4**k) for k in range(7)]
widths = np.geomspace(0.25, 8.0, 11)
by_size = [expert_posterior(1.0, size) for size in sizes]
by_width = [expert_posterior(width, 2000) for width in widths]
terms_by_size = np.array([mean_terms(s, size) for s, size in zip(by_size, sizes, strict=True)])
terms_by_width = np.array([mean_terms(s, 2000) for s in by_width])

fixed_eta = 0.2
one = expert_posterior(1.0, 2000)
ratio = float(one.qsb.mean())
constants = np.linspace(ratio, 0.97 * 2 / fixed_eta, 60)
by_constant = [
    flatness_bound(
        Estimate(float(one.training_risk.mean())), float(one.divergence.mean()), 2000, fixed_eta, Estimate(constant),
        Estimate(float(one.flatness.mean())), delta=delta,
    ).value
    for constant in constants.tolist()
]  # fmt: skip


def width_ticks(axes):
    """Plain numbers on a logarithmic axis of widths."""
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8], ["¼", "½", "1", "2", "4", "8"])
    axes.minorticks_off()


# %%
figure, panels = plt.subplots(1, 3, figsize=(7.2, 3.4))
styles = [TERM_STYLES[name] for name in ("experts' own risk", "complexity", "Poincaré flatness")]
gradient_symbol = r"$E\,E_Q\langle\nabla\ell,\Sigma\nabla\ell\rangle$"
labels = (r"$A\,\hat L(Q)$", r"$A\,({\rm KL} + {\rm price})/(\eta n)$", rf"$B$ {gradient_symbol}")
columns = ((sizes, terms_by_size, by_size), (widths, terms_by_width, by_width))
for axes, (xs, terms, worlds) in zip(panels[:2], columns, strict=True):
    bottom = np.zeros(len(xs))
    for values, label, (colour, hatch) in zip(terms.T, labels, styles, strict=True):
        axes.fill_between(xs, bottom, bottom + values, color=colour, hatch=hatch, edgecolor="white", label=label, lw=0)
        bottom = bottom + values
    axes.plot(xs, [w.risk.mean() for w in worlds], color="black", marker="D", markersize=3, label="true L(Q)")
    axes.axhline(np.log(2), color="0.4", linestyle="--", linewidth=1, label="knowing nothing, ln 2")
    axes.set_xscale("log")
    axes.set_ylim(0, 2.6)
panels[0].set(xlabel="sample size n  (σ = 1)", ylabel="bound (2)  (nats)")
panels[1].set(xlabel="posterior width σ  (n = 2000)")
width_ticks(panels[1])
panels[2].plot(constants, by_constant, color=BLUE, marker="", label="bound (2)")
panels[2].axvline(ratio, color=GREEN, linestyle=":", label=f"ratio, C = {ratio:.2f}")
panels[2].axvline(2 / fixed_eta, color=VERMILION, linestyle="-.", label="2/η: empty beyond")
panels[2].set(xlabel=f"constant C  (η = {fixed_eta:g}, n = 2000)", ylim=(0, 6))
panels[2].legend(loc="upper left")
handles, names = panels[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=3)
plt.show()
Markdown(
    f"**Figure 2.** Terms of (2), stacked, and the true risk (nats; means over 40 samples; d = {inputs}, "
    f"δ = {delta:g}). Left: complexity is what n removes. Middle: a narrow posterior pays in KL, a wide one in risk; "
    "the jump is η moving along its grid. Right: a C larger than necessary (a supremum instead of the ratio) costs a "
    "factor A, and from C = 2/η on the bound is empty."
)

# %% [markdown]
# ## What flatness buys
#
# (2a) is never worse than (2), but its second moment says nothing about geometry: it is large when the loss is large,
# flat or not. (2) splits it into the part that $C$ controls and the variance of the loss under the posterior, and
# bounds that variance by gradients. The price is the ratio of the gradient term to the variance: 1 for a loss that is
# linear over the width of the posterior, more when it bends. (3) replaces measured gradients by the kernel and pays
# again.

# %%
variance = np.array([(s.second_moment - s.squared).mean() for s in by_width])
squared = np.array([s.squared.mean() for s in by_width])
gradient_term = np.array([s.flatness.mean() for s in by_width])
compare_eta = 0.02
extra = {}
for width, s in zip(widths, by_width, strict=True):
    bounds = all_bounds(s, float(width), compare_eta, 2000, delta)
    for name in list(bounds)[1:]:
        extra.setdefault(name, []).append(float((bounds[name] - bounds["(2a)"]).mean()))

# %%
figure, (left, right) = plt.subplots(1, 2)
left.loglog(widths, gradient_term, color=ORANGE, marker="s", label=f"{gradient_symbol}, in (2)")
left.loglog(widths, variance, color=BLUE, marker="o", label=r"$E\,{\rm Var}_Q\,\ell$, part of $E\,E_Q\ell^2$ in (2a)")
left.loglog(widths, squared, color=SKY, marker="", linestyle=":", label=r"$E\,(E_Q\ell)^2$, the other part")
left.set(xlabel="posterior width σ", ylabel="nats²", ylim=(1e-3, 1e3))
left.legend(loc="upper left")
styles = ((ORANGE, "s", "--"), (GREEN, "^", "-."), (PURPLE, "v", ":"))
for (name, values), (colour, marker, line) in zip(extra.items(), styles, strict=True):
    shown = np.where(np.isfinite(values), values, np.nan)
    right.loglog(widths, shown, color=colour, marker=marker, linestyle=line, label=name)
right.set(xlabel="posterior width σ", ylabel="bound − (2a)  (nats)")
right.legend()
width_ticks(left)
width_ticks(right)
plt.show()
Markdown(
    f"**Figure 3.** Left: the variance of the loss and its Poincaré bound (nats²; population means over d = {inputs} "
    "inputs, then means over 40 samples). They meet for narrow posteriors. Right: what (2) and (3) pay over (2a) at "
    f"η = {compare_eta:g}, n = 2000 (nats): at small σ because A multiplies a large complexity, at large σ for the "
    "gradients; a line ends where the denominator of (3) is no longer positive."
)

# %% [markdown]
# ## Assertions

# %%
for name, values in stated.items():
    low, _ = rate_limits(int((statistics.risk > values).sum()), draws)
    assert low <= delta, f"{name} violated too often"
held = statistics.risk <= stated["(2a)"]
assert (stated["(2a)"] <= stated["(2)"] + 1e-9)[held].all(), "(2a) is never worse than (2) on its event"
assert (stated["(2)"] <= stated["(3), 0.4073 D²"] + 1e-9)[held].all(), "(3) is (2) with a bound put in"
assert (stated["(3), 0.4073 D²"] <= stated["(3), 2γκ_op"]).all(), "D² always helps"

for rows, risk in wrong:
    for name, values in rows.items():
        low, _ = rate_limits(int((risk > values).sum()), len(risk))
        assert (low > 0.05) == ("stated" not in name), f"{name}: caught exactly if wrong"

assert (variance <= gradient_term * (1 + 1e-6)).all(), "Gaussian Poincaré"
assert gradient_term[0] < 1.02 * variance[0], "an equality for a loss that is linear over the posterior"
assert gradient_term[-1] > 1.3 * variance[-1], "and loose where the loss bends"
slack = terms_by_size.sum(1) - [s.risk.mean() for s in by_size]
assert (np.diff(slack) < 0).all(), "tighter with n"
total = terms_by_width.sum(1)
assert total.argmin() not in (0, len(total) - 1), "the best posterior is neither a point nor the prior"
assert (np.diff(by_constant) > 0).all(), "C larger than necessary costs"

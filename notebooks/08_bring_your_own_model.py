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
# # Bring your own model
#
# **Claim.** Any torch modules of one architecture that were fine-tuned from the same $\theta_0$ can be merged and
# reported on. What holds for such a network, however far it is from linear, is the *corrected* reading of
# ([docs/theory.md](../docs/theory.md#6-leaving-the-linear-regime-the-transfer-error), (5) and (7)):
#
# $$L_\alpha(\theta_m) \le L^{\rm lin}_\alpha(\theta_m) + \varepsilon^+_\alpha(\theta_m)
# \le \text{right side of (5)} + \varepsilon^+_\alpha(\theta_m). \tag{7}$$
#
# **Proof idea.**
# 1. A module becomes $f_\theta(x)$, a pure function of parameters and inputs (`bounds.autodiff.functional`); everything
#    below needs nothing else.
# 2. $\theta_0$ and the experts give $\tau_t$, the tasks give samples: with them every term of (5) is a mean over
#    Jacobian products.
# 3. $\varepsilon^+$ compares the network with its linearisation on inputs alone; adding it makes (5) a statement about
#    the network.
#
# **World.** Small images of four shapes. A task is a domain: the shapes upright, turned, or inverted. Replace the two
# cells "model" and "tasks" by yours and keep the rest.

# %%
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from torch import nn

from bounds.types import Sample
from diagnostics import report
from diagnostics.figures.style import BLUE, GREEN, ORANGE, PURPLE, TERM_STYLES, VERMILION
from diagnostics.settings import Settings
from merging import merge, suite_from_modules

plt.style.use("style.mplstyle")
torch.set_default_dtype(torch.float64)  # the same results on every machine; float32 will do

# %% [markdown]
# ## Numbers to change

# %%
noise = 0.7  # standard deviation of the pixels
sizes = {"train": 400, "calibration": 64, "validation": 200, "test": 400}  # images of each task; splits are disjoint
methods = {"average": {}, "task_arithmetic": {}, "samerging": {"steps": 30, "granularity": "tensor"}}
seed = 0

# %% [markdown]
# ## Model
#
# Any module whose output is scores $[N, C]$. If tasks have heads of their own, name their tensors with
# `suite_from_modules(..., heads="classifier.*")`: each task keeps its expert's, frozen, whatever its number of classes.


# %%
class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Linear(64, 4)

    def forward(self, x):
        """Scores [N, 4] of images [N, 1, 8, 8]."""
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        return self.last(F.max_pool2d(F.relu(self.second(x)), 2).flatten(1))


def train(module, sample, steps, learning_rate=0.01):
    """Return a trained copy."""
    module = deepcopy(module)
    adam = torch.optim.Adam(module.parameters(), lr=learning_rate)
    for _ in range(steps):
        adam.zero_grad()
        F.cross_entropy(module(sample.inputs), sample.labels).backward()
        adam.step()
    return module


# %% [markdown]
# ## Tasks
#
# Four disjoint splits each: `train` is what the expert was fine-tuned on, `calibration` has no labels, `validation` may
# choose, `test` is read by the report only. $\theta_0$ is trained on other images.

# %%
generator = torch.Generator().manual_seed(seed)
shapes = (torch.rand(4, 1, 8, 8, generator=generator) > 0.5).double()
domains = {"upright": lambda x: x, "turned": lambda x: x.rot90(1, (-2, -1)), "inverted": lambda x: 1 - x}


def draw(domain, size):
    """Noisy images of random shapes, with labels."""
    labels = torch.randint(4, (size,), generator=generator)
    return Sample(domains[domain](shapes[labels]) + noise * torch.randn(size, 1, 8, 8, generator=generator), labels)


def joined(samples):
    """One sample of several."""
    return Sample(torch.cat([s.inputs for s in samples]), torch.cat([s.labels for s in samples]))


torch.manual_seed(seed)
pretrained = train(Net(), joined([draw(name, 100) for name in domains]), steps=40)
data = {name: {split: draw(name, size) for split, size in sizes.items()} for name in domains}
fine_tuned = {name: train(pretrained, data[name]["train"], steps=30, learning_rate=0.003) for name in domains}

# %% [markdown]
# ## Merge and report
#
# `suite_from_modules` takes the modules and their data as they are; `report` makes what
# `python -m diagnostics.bound_report` shows; three of its sections are enough here.

# %%
suite = suite_from_modules(pretrained, fine_tuned, data, name="mine")
merges = {name: merge(name, suite, **settings) for name, settings in methods.items()}
measure = Settings(held_out=32, kernel=16, train=64, seed=seed)
found = report(merges, suite, settings=measure, sections=("accuracy", "bound", "certificates")).data

# %%
tested = {m.label: np.array([row.accuracy["merged"] for row in m.accuracy.tasks]) for m in found.merges}
first = found.merges[0].accuracy.tasks
tested |= {who: np.array([row.accuracy[who] for row in first]) for who in ("pretrained", "expert")}
print("test accuracy    " + "".join(f"{name:>10}" for name in domains) + "      mean")
for name, values in tested.items():
    print(f"{name:<17}" + "".join(f"{v:>10.3f}" for v in (*values, values.mean())))
readings = {m.label: {r.reading: r.value for r in m.bound.readings} for m in found.merges}
risks = {m.label: m.accuracy.risk for m in found.merges}
print(f"\ncross-entropy (nats); knowing nothing: {found.merges[0].bound.trivial_risk:.2f}")
for m in found.merges:
    values = "".join(f"  {name} {value:.2f}" for name, value in readings[m.label].items())
    print(f"{m.label:<17}risk {risks[m.label].value:.3f} at distance {m.bound.distance:.2f}; bounds: {values}")
print("\n0-1 error, certified from validation labels (delta = 0.05 for all together)")
for m in found.merges:
    row = m.certificates.rows[0]
    print(f"{m.label:<17}{row.value:.3f} by {row.equation}, {row.name}; on test {row.test_error:.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 3.4), width_ratios=[1, 1.2])
styles = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), ("0.6", "v"), ("black", "D"), (VERMILION, "P"), (PURPLE, "X"))
for offset, ((name, values), (colour, marker)) in enumerate(zip(tested.items(), styles, strict=False)):
    places = np.arange(len(domains)) + 0.12 * (offset - 2)
    left.plot(values, places, color=colour, marker=marker, linestyle="", label=name)
left.set_yticks(range(len(domains)), list(domains))
left.set(xlabel="test accuracy", xlim=(None, 1))
for place, m in enumerate(found.merges):
    ends = [0.0, 0.0]  # of the positive and of the negative terms
    for term in next(r for r in m.bound.readings if r.reading == "corrected").terms:
        (colour, hatch), value = TERM_STYLES[term.name], term.estimate.value
        label = None if place else term.name
        right.barh(place, value, left=ends[value < 0], color=colour, hatch=hatch, edgecolor="white", label=label)
        ends[value < 0] += value
    right.plot(risks[m.label].value, place, "D", color="black", label=None if place else "measured risk")
right.set_yticks(range(len(methods)), list(methods))
right.set_xlabel("terms of the corrected reading (nats)")
for axes in (left, right):
    axes.invert_yaxis()
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.4, -0.2))
plt.show()
Markdown(
    f"**Figure 1.** Left: accuracy on {sizes['test']} test images a task. Right: terms of the corrected reading "
    f"({measure.held_out} held-out images a task) against the measured cross-entropy."
)

# %% [markdown]
# ## The wrong version
#
# Experts that do *not* share $\theta_0$: same names and shapes, so nothing refuses them. Each of these was trained from
# an initialisation of its own. Alone they are good; but $\tau_t$ is the difference of two unrelated networks, and both
# the accuracy of the merge and the report show it.

# %%
strangers = {name: train(Net(), data[name]["train"], steps=100) for name in domains}
wrong_suite = suite_from_modules(pretrained, strangers, data, name="mine")
other = report(
    merge("average", wrong_suite), wrong_suite, settings=measure, sections=("accuracy", "bound")
).data.merges[0]
alone, together = (np.mean([row.accuracy[who] for row in other.accuracy.tasks]) for who in ("expert", "merged"))
bound = {r.reading: r.value for r in other.bound.readings}["corrected"]
print(f"strangers alone {alone:.3f}, averaged {together:.3f} (pretrained {tested['pretrained'].mean():.3f}); "
      f"corrected reading {bound:.1f} nats")  # fmt: skip

# %% [markdown]
# ## Assertions

# %%
for name, bounds in readings.items():
    assert bounds["corrected"] >= bounds["linearised"], "eps+ >= 0"
    assert bounds["corrected"] >= risks[name].value - 3 * risks[name].stderr, "(7)"
for m in found.merges:
    for certificate in m.certificates.rows:
        assert certificate.value > certificate.observed, "certainty costs something"
if (noise, sizes["train"], list(methods), seed) == (0.7, 400, ["average", "task_arithmetic", "samerging"], 0):
    for name in methods:
        assert tested[name].mean() > tested["pretrained"].mean() + 0.02, "merging pays"
        assert tested["expert"].mean() > tested[name].mean() + 0.05, "an expert on its own task is better still"
    assert abs(alone - tested["expert"].mean()) < 0.1, "strangers are good experts"
    assert together < tested["average"].mean() - 0.1, "that cannot be merged"
    assert bound > 2 * readings["average"]["corrected"], "and the bound knows"

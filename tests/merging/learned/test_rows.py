"""The published methods by name: AdaMerging, ProDistill, the SyMerge-like row."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bounds.autodiff import functional
from bounds.types import InputError, Sample
from merging import Task, TaskVectors, learned, merge, merged
from merging.execution import Execution
from merging.learned.layerwise import find_layers, layer_output
from merging.learned.trimming import trimmed
from merging.params import partition
from merging.suites import Suite, toy
from tests.laws import LAWS, WHOLE


class Network(nn.Module):
    """A stem, two numbered layers (each a module of two tensors), and a last tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 5)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(2)])
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        hidden = self.stem(x)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.last(hidden)


def layered(tasks=2, move=("layers",), network: type[nn.Module] = Network, dtype=torch.float64):
    """Experts that differ from the base in the tensors whose names start with one of ``move``."""
    generator = torch.Generator().manual_seed(0)
    forward, base = functional(network().to(dtype))

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    deltas = [{n: draw(*v.shape) * (0.6 if n.startswith(move) else 0.0) for n, v in base.items()} for _ in range(tasks)]
    names = [f"task{t}" for t in range(tasks)]
    made = []
    for name in names:
        splits = {split: Sample(draw(12, 4), torch.arange(12) % 3) for split in ("train", "validation", "test")}
        made.append(Task(name, forward, ["a", "b", "c"], calibration=Sample(draw(12, 4)), **splits))
    return TaskVectors(base, deltas, names), made


def test_the_output_of_a_layer_is_found_by_its_tensors_and_later_layers_do_not_run():
    vectors, tasks = layered()
    x, base = torch.randn(6, 4, dtype=torch.float64), vectors.base
    for index, names in enumerate(find_layers(base).values()):
        # the innermost module that holds exactly the layer's tensors is the Linear: the Tanh after it has none
        assert torch.allclose(layer_output(tasks[0].forward, names)(base, x), output_before_tanh(base, x, index))
    broken = {**base, "last.weight": torch.full_like(base["last.weight"], float("nan"))}
    assert torch.isfinite(layer_output(tasks[0].forward, find_layers(base)["layers.1"])(broken, x)).all()
    assert not torch.isfinite(tasks[0].forward(broken, x)).all()


def test_hooks_are_removed_also_when_the_layer_is_not_there():
    vectors, tasks = layered()
    hooks = nn.modules.module._global_forward_hooks
    count = len(hooks)
    with pytest.raises(InputError, match="layer: expected a module that holds exactly"):
        layer_output(tasks[0].forward, ["stem.weight"])(vectors.base, torch.zeros(2, 4, dtype=torch.float64))
    assert len(hooks) == count


def test_prodistill_recovers_the_expert_of_one_task_and_leaves_what_is_outside_layers():
    vectors, tasks = layered(tasks=1)
    made = merge("prodistill", vectors, tasks, examples=12, batch=12, init=0.3, steps=300, learning_rate=0.03)
    assert made.coefficients is not None
    assert made.blocks is not None
    for column, block in enumerate(made.blocks):
        expected = 1.0 if block.startswith("layers") else 0.3
        assert float(made.coefficients[0, column]) == pytest.approx(expected, abs=1e-3)
    assert len(made.history["loss"]) == 600


def test_prodistill_minimises_the_layers_squared_error_and_feeds_the_merged_layers_output_on():
    vectors, tasks = layered(move=("layers", "stem"))
    settings: dict[str, Any] = {"examples": 12, "batch": 12, "init": 0.3, "steps": 5, "learning_rate": 0.03}
    made = merge("prodistill", vectors, tasks, **settings)
    assert made.coefficients is not None
    problem = learned.prepare(vectors, tasks, learned.LearnedSettings(**settings))
    columns = {block: column for column, block in enumerate(partition(vectors.base, "tensor"))}
    coefficients = torch.full((2, len(columns)), 0.3, dtype=torch.float64)
    for stage, names in enumerate(find_layers(vectors.base).values()):
        chosen = [columns[name] for name in names]
        leaf = coefficients[:, chosen].clone().requires_grad_()
        adam = torch.optim.Adam([leaf], lr=0.03)
        for step in range(5):
            whole = coefficients.clone()
            whole[:, chosen] = leaf
            theta, loss = merged(vectors, whole), torch.zeros((), dtype=torch.float64)
            for t in range(2):
                pair = [output_before_tanh(p, problem.inputs[t], stage) for p in (theta, vectors.expert(t))]
                loss = loss + (pair[0] - pair[1]).square().mean() / 2
            adam.zero_grad()
            loss.backward()
            adam.step()
            assert made.history["loss"][5 * stage + step] == pytest.approx(float(loss.detach()), rel=1e-9)
        coefficients[:, chosen] = leaf.detach()
    assert torch.allclose(made.coefficients, coefficients, atol=1e-9)


def by_entry(vectors, tasks, settings, slope_of=lambda slope, delta: slope * delta):
    """Losses and θ of ProDistill with a coefficient per entry, Adam written out; ``slope_of`` makes ∇_λ of ∇_θ."""
    problem = learned.prepare(vectors, tasks, learned.LearnedSettings(**settings))
    theta = {n: base + settings["init"] * vectors.stacked[n].sum(dim=0) for n, base in vectors.base.items()}
    losses, rate = [], settings["learning_rate"]
    for stage, names in enumerate(find_layers(vectors.base).values()):
        weights = {n: torch.full_like(vectors.stacked[n], settings["init"]) for n in names}
        first, second = ({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
        for step in range(1, settings["steps"] + 1):
            loss, leaf = torch.zeros((), dtype=torch.float64), {n: theta[n].clone().requires_grad_() for n in names}
            for t in range(len(tasks)):
                pair = (theta | leaf, vectors.expert(t))
                student, teacher = (output_before_tanh(p, problem.inputs[t], stage) for p in pair)
                loss = loss + (student - teacher).square().mean() / len(tasks)
            losses.append(float(loss.detach()))
            for n, slope in zip(names, torch.autograd.grad(loss, list(leaf.values())), strict=True):
                for t, delta in enumerate(vectors.stacked[n]):
                    own = slope_of(slope, delta)
                    first[n][t] = 0.9 * first[n][t] + 0.1 * own
                    second[n][t] = 0.999 * second[n][t] + 0.001 * own**2
                    size = (second[n][t] / (1 - 0.999**step)).sqrt() + 1e-8
                    weights[n][t] -= rate * first[n][t] / (1 - 0.9**step) / size
                theta[n] = vectors.base[n] + sum(w * d for w, d in zip(weights[n], vectors.stacked[n], strict=True))
    return losses, theta


def test_prodistill_by_entry_learns_a_number_for_each_entry_of_each_task_vector():
    vectors, tasks = layered(move=("layers", "stem"))
    settings: dict[str, Any] = {"examples": 12, "batch": 12, "init": 0.3, "steps": 5, "learning_rate": 0.03}
    made = merge("prodistill_entry", vectors, tasks, **settings)
    losses, theta = by_entry(vectors, tasks, settings)
    assert made.history["loss"] == pytest.approx(losses, rel=1e-9)
    assert (made.coefficients, made.blocks) == (None, None)
    for name, value in theta.items():
        assert torch.allclose(made.merged[name], value, atol=1e-9), name
    again = merge("prodistill", vectors, tasks, granularity="entry", **settings)
    assert all(torch.equal(again.merged[name], value) for name, value in made.merged.items())


def test_the_gradient_of_an_entrys_coefficient_is_that_of_the_entry_times_the_task_vector():
    """Adam divides by the gradient's size, so that a wrong factor shows in its sign alone."""
    vectors, tasks = layered(move=("layers", "stem"))
    settings: dict[str, Any] = {"examples": 12, "batch": 12, "init": 0.3, "steps": 5, "learning_rate": 0.03}
    made = merge("prodistill_entry", vectors, tasks, **settings)
    for wrong in (lambda slope, delta: slope, lambda slope, delta: slope * delta.abs()):
        losses, _ = by_entry(vectors, tasks, settings, wrong)
        assert losses != pytest.approx(made.history["loss"], rel=1e-3)


def test_prodistill_by_entry_recovers_the_layers_of_one_expert():
    """A number per entry can give every layer its expert's outputs."""
    vectors, tasks = layered(tasks=1)
    made = merge("prodistill_entry", vectors, tasks, examples=12, batch=12, steps=100, learning_rate=0.1)
    for start in (0, 100):
        assert made.history["loss"][start + 99] < 1e-2 * made.history["loss"][start]


@pytest.mark.parametrize("law", [law for law in LAWS if law != "refuses"])
@pytest.mark.parametrize("method", ["prodistill", "prodistill_entry"])
def test_laws_hold_in_a_world_with_layers(method, law, monkeypatch):
    """With plain gradient descent: Adam makes a visible step of the rounding that a layer hands to the next."""

    def world(dtype=torch.float64):
        vectors, tasks = layered(tasks=3, move=("stem", "layers", "last"), dtype=dtype)
        return Suite("layered", vectors, tasks)

    monkeypatch.setattr("tests.laws.world", world)
    monkeypatch.setattr("tests.laws.WHOLE", {**WHOLE, "optimizer": "sgd"})
    monkeypatch.setattr("tests.laws.DRAWN", {"perturbation": ("random", "random-weights")})  # layers have no scores
    LAWS[law](method)


def output_before_tanh(params, x, layer):
    hidden = F.linear(x, params["stem.weight"], params["stem.bias"])
    for i in range(layer + 1):
        hidden = F.linear(
            torch.tanh(hidden) if i else hidden, params[f"layers.{i}.0.weight"], params[f"layers.{i}.0.bias"]
        )
    return hidden


class SequenceFirst(Network):
    def forward(self, x):
        hidden = self.stem(x)[None]
        for layer in self.layers:
            hidden = layer(hidden)
        return self.last(hidden[0])


def test_prodistill_refuses_what_it_cannot_find_layers_in():
    suite = toy.build()
    with pytest.raises(InputError, match=r"layers: modules such as layers\.0"):
        merge("prodistill", suite.task_vectors, suite.tasks)
    forward, base = functional(SequenceFirst().double())
    _, tasks = layered()
    tasks = [
        Task(
            t.name,
            forward,
            t.class_names,
            train=t.train,
            calibration=t.calibration,
            validation=t.validation,
            test=t.test,
        )
        for t in tasks
    ]
    vectors = TaskVectors(base, [{n: torch.ones_like(v) for n, v in base.items()}] * 2, ["task0", "task1"])
    with pytest.raises(InputError, match="the example as first axis"):
        merge("prodistill", vectors, tasks, examples=12)
    vectors, tasks = layered()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"objective": "kl"}, "objective of layer-by-layer"),
        ({"granularity": "task"}, "granularity: expected entry or tensor or block; got 'task'"),
        ({"perturbation": "ggn-trace"}, "without scores"),
    ]
    for setting, message in refused:
        with pytest.raises(InputError, match=message):
            merge("prodistill", vectors, tasks, **setting)


class Cutting(nn.Module):
    """Tokens without padding (0) up to the longest of a batch, embedded, two layers, and the mean over all L places."""

    def __init__(self, cut: bool = True) -> None:
        super().__init__()
        self.cut = cut
        self.words = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)])
        self.last = nn.Linear(4, 3)

    def forward(self, tokens):
        kept = tokens[:, : int((tokens != 0).sum(1).max())] if self.cut else tokens
        hidden = self.words(kept)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.last((hidden * (kept != 0)[..., None]).sum(1))


def texts(lengths, *, places=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 7, (len(lengths), places), generator=generator)
    return tokens * (torch.arange(places) < torch.tensor(lengths)[:, None])


def distilled(cut, inputs):
    torch.manual_seed(0)
    forward, base = functional(Cutting(cut).double())
    deltas = [{n: torch.randn_like(v) * (0.5 if n.startswith("layers") else 0) for n, v in base.items()} for _ in "ab"]
    sample = Sample(inputs, torch.arange(len(inputs)) % 3)
    splits = {"train": sample, "validation": sample, "test": sample}
    tasks = [Task(name, forward, ["a", "b", "c"], calibration=Sample(inputs), **splits) for name in "ab"]
    vectors = TaskVectors(base, deltas, ["a", "b"])
    settings = {"examples": len(inputs), "batch": 3, "steps": 20, "learning_rate": 0.05}
    coefficients = merge("prodistill", vectors, tasks, **settings).coefficients
    assert coefficients is not None
    return coefficients


def test_prodistill_of_a_network_that_cuts_texts_to_the_longest_of_a_batch():
    """Texts of one length: as if they had been cut before. Of several: the places that a batch has are compared."""
    same = texts([4] * 9)
    assert torch.equal(distilled(True, same), distilled(False, same[:, :4]))
    mixed = distilled(True, texts([6, 2, 3, 5, 2, 4, 3, 2, 6]))
    assert torch.isfinite(mixed).all()
    assert not torch.equal(mixed, distilled(False, texts([6, 2, 3, 5, 2, 4, 3, 2, 6])))


class Reversing(Cutting):
    """The same, read from the right: what an example gives depends on how long the longest beside it is."""

    def forward(self, tokens):
        kept = tokens[:, : int((tokens != 0).sum(1).max())].flip(1)
        return self.last(self.layers[1](self.layers[0](self.words(kept))).sum(1))


def test_prodistill_refuses_layers_whose_outputs_depend_on_the_examples_beside(monkeypatch):
    monkeypatch.setattr("tests.merging.learned.test_rows.Cutting", lambda cut: Reversing())
    with pytest.raises(InputError, match="the same for an example alone and among others"):
        distilled(True, texts([3, 2, 3, 5, 2, 4, 3, 2, 6]))


def test_trimming_keeps_the_largest_entries_and_the_elected_sign():
    base = {"a": torch.zeros(3), "b": torch.zeros(2)}
    first = {"a": torch.tensor([5.0, -1.0, 3.0]), "b": torch.tensor([0.5, -4.0])}
    second = {"a": torch.tensor([-2.0, 6.0, 0.1]), "b": torch.tensor([0.2, -3.0])}
    found = trimmed(TaskVectors(base, [first, second], ["x", "y"]), 0.6).deltas
    # trimmed to three entries each: (5, 0, 3, 0, -4) and (-2, 6, 0, 0, -3); elected signs (+, +, +, 0, -)
    assert torch.equal(torch.cat([*found[0].values()]), torch.tensor([5.0, 0.0, 3.0, 0.0, -4.0]))
    assert torch.equal(torch.cat([*found[1].values()]), torch.tensor([0.0, 6.0, 0.0, 0.0, -3.0]))


def test_adamerging_is_the_entropy_row_and_plus_plus_is_it_on_trimmed_task_vectors():
    suite = toy.build(overlap=0.5)
    settings: dict[str, Any] = {"steps": 4, "examples": 16, "batch": 16}
    same: dict[str, Any] = {"objective": "entropy", "perturbation": "none", "init": 0.3, "learning_rate": 1e-3}
    vectors = suite.task_vectors
    row = merge("adamerging", vectors, suite.tasks, **settings)
    by_hand = merge("samerging", vectors, suite.tasks, **settings, **same)
    assert row.coefficients is not None
    assert by_hand.coefficients is not None
    assert torch.equal(row.coefficients, by_hand.coefficients)
    task_wise = merge("adamerging_task", vectors, suite.tasks, **settings)
    assert task_wise.coefficients is not None
    assert task_wise.coefficients.shape == (3, 1)
    plus = merge("adamerging++", vectors, suite.tasks, density=0.5, **settings)
    small = TaskVectors(vectors.base, trimmed(vectors, 0.5).deltas, vectors.names)
    reference = merge("adamerging", small, suite.tasks, **settings)
    assert plus.coefficients is None
    # teachers are the trimmed experts there, which the entropy does not look at
    assert all(torch.allclose(plus.merged[n], reference.merged[n]) for n in vectors.base)
    assert not torch.allclose(plus.merged["first.weight"], row.merged["first.weight"])
    taught = merge("adamerging++", vectors, suite.tasks, density=0.5, objective="squared", **{**settings, "steps": 1})
    problem = learned.prepare(vectors, suite.tasks, learned.LearnedSettings(examples=16))
    start = merged(small, torch.full((3, 1), 0.3, dtype=torch.float64))
    losses = [
        (task.forward(start, x) - task.forward(vectors.expert(t), x)).square().mean()
        for t, (task, x) in enumerate(zip(suite.tasks, problem.inputs, strict=True))
    ]
    assert taught.history["loss"][0] == pytest.approx(float(torch.stack(losses).mean()))
    with pytest.raises(InputError, match="density"):
        merge("adamerging++", vectors, suite.tasks, density=0.0)


def test_the_symerge_like_row_is_adam_on_coefficients_and_one_layer():
    vectors, tasks = layered(move=("layers", "stem", "last"))
    settings: dict[str, Any] = {"examples": 12, "batch": 12, "steps": 4, "learning_rate": 0.05}
    made = merge("symerge", vectors, tasks, layer="layers.1", layer_learning_rate=0.01, **settings)
    problem = learned.prepare(vectors, tasks, learned.LearnedSettings(objective="cross-entropy", **settings))
    leaf = torch.full((2, len(vectors.base)), 0.5, dtype=torch.float64, requires_grad=True)
    names = partition(vectors.base, "block")["layers.1"]
    delta = {name: torch.zeros_like(vectors.base[name], requires_grad=True) for name in names}
    optimizers = [torch.optim.Adam([leaf], lr=0.05), torch.optim.Adam(list(delta.values()), lr=0.01)]

    def theta():
        return {name: value + delta[name] if name in delta else value for name, value in merged(vectors, leaf).items()}

    for _ in range(4):
        loss = torch.zeros((), dtype=torch.float64)
        for t, task in enumerate(tasks):
            labels = task.forward(vectors.expert(t), problem.inputs[t]).argmax(dim=1)
            loss = loss + F.cross_entropy(task.forward(theta(), problem.inputs[t]), labels) / 2
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    expected = theta()
    assert all(torch.allclose(made.merged[name], expected[name], atol=1e-9) for name in expected)
    assert made.coefficients is None


def test_the_symerge_like_row_goes_with_perturbations_and_takes_the_last_layer_by_default():
    vectors, tasks = layered(move=("layers",))
    settings: dict[str, Any] = {"examples": 12, "steps": 3}
    plain = merge("symerge", vectors, tasks, **settings).merged
    assert torch.equal(plain["stem.weight"], vectors.base["stem.weight"])
    assert not torch.equal(plain["last.weight"], vectors.base["last.weight"])
    for perturbation in ("weights", "coefficients", "random-weights"):
        other = merge("symerge", vectors, tasks, perturbation=perturbation, **settings).merged
        assert not torch.allclose(other["last.weight"], plain["last.weight"], atol=1e-7)
    # of the trace penalty only the loss moves the layer: its first step is that of no penalty
    one = {**settings, "steps": 1}
    with_penalty, without = (
        merge("symerge", vectors, tasks, perturbation=name, **one).merged for name in ("ggn-trace", "none")
    )
    assert torch.allclose(with_penalty["last.weight"], without["last.weight"], atol=1e-12)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"layer": "nowhere"}, "layer: expected stem or"),
        ({"layer_learning_rate": 0.0}, "layer_learning_rate"),
    ]
    for setting, message in refused:
        with pytest.raises(InputError, match=message):
            merge("symerge", vectors, tasks, **setting)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("symerge", {"perturbation": "weights"}),
        ("symerge", {"perturbation": "look", "every": 3}),
        ("samerging", {"perturbation": "momentum", "average": "ema"}),
        ("samerging", {"perturbation": "friendly", "average": "swa", "optimizer": "sgd"}),
        ("samerging", {"perturbation": "random-weights", "cached": 3}),
        ("adamerging++", {"perturbation": "ggn-trace", "optimizer": "adamw"}),
        ("adarank", {"mask_learning_rate": 0.05, "kept": 0.5, "perturbation": "coefficients"}),
        ("frank_wolfe", {"perturbation": "none"}),
    ],
)
def test_a_run_resumed_from_its_file_is_the_straight_run(method, settings, tmp_path):
    vectors, tasks = layered(move=("layers", "last"))
    settings = {"examples": 12, "batch": 5, **settings}
    straight = merge(method, vectors, tasks, steps=8, **settings)
    file = tmp_path / "checkpoint"
    merge(method, vectors, tasks, steps=4, execution=Execution(checkpoint=file, every=2), **settings)
    assert file.is_file()
    resumed = merge(
        method, vectors, tasks, steps=8, execution=Execution(checkpoint=file, every=2, resume=True), **settings
    )
    assert resumed.history == straight.history
    assert all(torch.equal(resumed.merged[name], value) for name, value in straight.merged.items())

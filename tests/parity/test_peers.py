"""Rows beside the public code of peers, by its own functions, on one small problem in float64.

Each test is skipped where its peer is not installed: mergekit 0.1.5 or FusionBench 0.2.33, which are no dependencies.
Settings are those with which both do the same; docs/methods.md, "Where peers differ", says what else differs.
"""

import importlib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
import typing_extensions
from torch import Tensor, nn

from bounds.types import Inputs, Params
from merging import TaskVectors, merge
from merging.closed_form.tensorwise import keep_probabilities
from merging.suites import toy

pytestmark = pytest.mark.filterwarnings("ignore")
Peer = Callable[[TaskVectors], Mapping[str, Tensor]]
"""Task vectors -> weights merged by the peer."""
SHAPES = {"encoder.a.weight": (8, 6), "encoder.b.weight": (4, 6), "encoder.a.bias": (4,)}
ONE, MATRICES, ALL = tuple(SHAPES)[:1], tuple(SHAPES)[:2], tuple(SHAPES)


@pytest.fixture(autouse=True)
def _newer_typing(monkeypatch):
    """FusionBench takes a name from ``typing`` that Python has since 3.12."""
    monkeypatch.setattr(typing, "override", typing_extensions.override, raising=False)


def world(tasks: int, names: Sequence[str]) -> TaskVectors:
    """Experts whose task vectors have a part in common."""
    generator = torch.Generator().manual_seed(1)

    def drawn(size: float) -> dict[str, Tensor]:
        return {n: size * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}

    base, common, own = drawn(1.0), drawn(0.1), [drawn(0.1) for _ in range(tasks)]
    deltas = [{name: common[name] + part[name] for name in SHAPES} for part in own]
    return TaskVectors(*_only(names, base, deltas), [f"task{i}" for i in range(tasks)])


def _only(names: Sequence[str], base: Params, deltas: Sequence[Params]) -> tuple[Params, Sequence[Params]]:
    first, *others = ({name: part[name] for name in names} for part in (base, *deltas))
    return first, others


def apart(first: Mapping[str, Tensor], second: Mapping[str, Tensor], base: Params) -> float:
    """‖first - second‖ as a share of ‖second - θ_0‖."""
    difference, whole = (
        sum(float((left[name] - right[name]).square().sum()) for name in base)
        for left, right in ((first, second), (second, base))
    )
    return (difference / whole) ** 0.5


def added(tv: TaskVectors, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + vector[name].detach() for name, value in tv.base.items()}


def flat(tv: TaskVectors) -> Tensor:
    """Task vectors [T, P]."""
    return torch.stack([torch.cat([delta[name].flatten() for name in tv.base]) for delta in tv.deltas])


def spread(tv: TaskVectors, row: Tensor) -> dict[str, Tensor]:
    parts = row.split([value.numel() for value in tv.base.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(tv.base.items(), parts, strict=True)}


def mergekit(method: str, first: str | None = "base", **parameters: object) -> Peer:
    """The method of mergekit by its name; ``first`` is what it takes for its base: θ_0, an expert or nothing."""

    def run(tv: TaskVectors) -> Mapping[str, Tensor]:
        peer = pytest.importorskip("mergekit.merge_methods")
        models = {name: tv.expert(index) for index, name in enumerate(tv.names)}
        if first == "base":
            models["base"] = dict(tv.base)
        return peer.merge_state_dicts(models, method, parameters=parameters, base=first)

    return run


def fusion_bench(name: str) -> typing.Any:
    """A module of FusionBench's methods."""
    pytest.importorskip("fusion_bench")
    return importlib.import_module(f"fusion_bench.method.{name}")


def of_task_vectors(module: str, function: str, **more: object) -> Peer:
    """A function of FusionBench from a list of task vectors to the merged one."""

    def run(tv: TaskVectors) -> Mapping[str, Tensor]:
        deltas = [{name: value.clone() for name, value in delta.items()} for delta in tv.deltas]
        return added(tv, getattr(fusion_bench(module), function)(deltas, accelerator="cpu", **more))

    return run


def ties(tv: TaskVectors) -> Mapping[str, Tensor]:
    peer = fusion_bench("ties_merging.ties_merging_utils")
    return added(tv, spread(tv, peer.ties_merging(flat(tv), reset_thresh=0.25, merge_func="mean")))


def consensus(tv: TaskVectors) -> Mapping[str, Tensor]:
    vectors = flat(tv)
    base = torch.cat([value.flatten() for value in tv.base.values()])
    masks = fusion_bench("tall_mask.utils").generate_task_masks(vectors, base + vectors, base, tall_mask_lambda=0.4)
    return added(tv, spread(tv, torch.where(masks.sum(dim=0) >= 2, vectors.sum(dim=0), 0)))


def slerp(tv: TaskVectors) -> Mapping[str, Tensor]:
    return fusion_bench("slerp.slerp").slerp_on_state_dicts(0.3, tv.expert(0), tv.expert(1))


def model_stock(tv: TaskVectors) -> Mapping[str, Tensor]:
    peer, experts = fusion_bench("model_stock.model_stock"), (tv.expert(0), tv.expert(1))
    ratios = peer.compute_ratio(peer.compute_angle(*experts, dict(tv.base)))
    return peer.merge_weights(*experts, dict(tv.base), ratios)


def knots(tv: TaskVectors) -> Mapping[str, Tensor]:
    u, sigma, parts = fusion_bench("knots.knots_utils").subspace_alignment([delta[ONE[0]] for delta in tv.deltas])
    rows = torch.stack([part.flatten() for part in parts])
    peer = fusion_bench("ties_merging.ties_merging_utils")
    merged = peer.ties_merging(rows, reset_thresh=0.25, merge_func="mean")
    return added(tv, {ONE[0]: (u * sigma) @ merged.view_as(parts[0])})


def svc(tv: TaskVectors) -> Mapping[str, Tensor]:
    peer = fusion_bench("singular_value_calibration.utils")
    total = {name: value + tv.stacked[name].sum(dim=0) for name, value in tv.base.items()}
    experts = [tv.expert(index) for index in range(len(tv))]
    return {
        name: peer.subspace_consistency_spectral_calibration_accelerated(
            value, [expert[name] for expert in experts], total[name], alpha=0.5
        )
        for name, value in tv.base.items()
    }


def module(params: Params) -> nn.Module:
    """A module with these tensors by these names."""
    whole = nn.Module()
    for name, value in params.items():
        *path, last = name.split(".")
        inside = whole
        for part in path:
            if part not in dict(inside.named_children()):
                inside.add_module(part, nn.Module())
            inside = inside.get_submodule(part)
        inside.register_parameter(last, nn.Parameter(value.clone()))
    return whole


def doge_ta(tv: TaskVectors) -> Mapping[str, Tensor]:
    algorithm = fusion_bench("doge_ta").DOGE_TA_Algorithm(subspace=2, K=30, lamda=0.07)
    models = {"_pretrained_": module(tv.base)}
    models |= {name: module(tv.expert(index)) for index, name in enumerate(tv.names)}
    return algorithm.run(models).state_dict()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row, and who merges the same: within ``tolerance`` of the size of the update."""

    row: str
    peer: Peer
    tolerance: float = 1e-12
    tasks: int = 3
    names: Sequence[str] = ALL


ISO, UTILS = "isotropic_merging.iso_utils", "task_singular_vector.utils.TSVM_utils"
CASES = {
    "average, mergekit": Case(row="average", peer=mergekit("linear", None, weight=1.0)),
    "task_arithmetic, mergekit": Case(row="task_arithmetic:scale=0.4", peer=mergekit("task_arithmetic", weight=0.4)),
    "ties, mergekit": Case(row="ties:density=0.25,scale=1", peer=mergekit("ties", density=0.25, weight=1.0), names=ONE),
    "slerp, mergekit": Case(row="slerp:share=0.3", peer=mergekit("slerp", "task0", t=0.3), tasks=2),
    "model_stock, mergekit": Case(row="model_stock", peer=mergekit("model_stock")),
    "breadcrumbs, mergekit": Case(
        row="breadcrumbs:density=0.75,outliers=0.25,scale=0.4",
        peer=mergekit("breadcrumbs", density=0.5, gamma=0.25, weight=0.4),
    ),
    "sce, mergekit": Case(row="sce:density=0.5", peer=mergekit("sce", select_topk=0.5)),
    "multi_slerp, mergekit": Case(row="multi_slerp", peer=mergekit("multislerp", None, weight=1.0, eps=1e-14)),
    "multi_slerp of task vectors, mergekit": Case(
        row="multi_slerp:centre=base", peer=mergekit("multislerp", weight=1.0, eps=1e-14)
    ),
    "karcher, mergekit": Case(row="karcher:tolerance=1e-14", peer=mergekit("karcher", None, max_iter=100, tol=1e-14)),
    "ties, FusionBench": Case(row=f"ties:density={20 / 76},scale=1", peer=ties),
    "consensus, FusionBench": Case(row="consensus:mask_threshold=0.4,scale=1", peer=consensus),
    "slerp, FusionBench": Case(row="slerp:share=0.3", peer=slerp, tasks=2),
    "model_stock, FusionBench": Case(row="model_stock", peer=model_stock, tasks=2, tolerance=1e-6),
    "iso_c, FusionBench": Case(row="iso_c:scale=1", peer=of_task_vectors(ISO, "iso_c")),
    "iso_cts, FusionBench": Case(
        row="iso_cts:scale=1", peer=of_task_vectors(ISO, "iso_cts", common_space_fraction=0.8)
    ),
    "tsv_m, FusionBench": Case(row="tsv_m", peer=of_task_vectors(UTILS, "compute_and_sum_svd_mem_reduction")),
    "wudi, FusionBench": Case(row="wudi", peer=of_task_vectors("wudi.wudi", "wudi_merging")),
    "knots, FusionBench": Case(row=f"knots:density={13 / 48},scale=1", peer=knots, names=ONE),
    "svc, FusionBench": Case(row="task_arithmetic:scale=1+svc:floor=0.5", peer=svc, names=MATRICES),
    "doge_ta, FusionBench": Case(row=f"doge_ta:density={22 / 72},subspace=2", peer=doge_ta, names=MATRICES),
}
"""Shares of entries are those with which both keep as many: FusionBench's TIES keeps one more than it says."""


@pytest.mark.parametrize("name", CASES)
def test_a_row_and_its_peer_merge_the_same(name):
    case = CASES[name]
    tv = world(case.tasks, case.names)
    theirs = case.peer(tv)
    assert apart(merge(case.row, tv, ()).merged, theirs, tv.base) < case.tolerance
    if case.row != "average":
        assert apart(merge("average", tv, ()).merged, theirs, tv.base) > 0.01, "any merge would pass"


def test_regmean_and_its_peer_merge_the_same():
    """On the inner products of the inputs that each expert's two weights have in the toy world."""
    peer = fusion_bench("regmean.regmean")
    suite = toy.build(overlap=0.5)
    tv = suite.task_vectors
    products = [_products(tv.expert(index), task.calibration.inputs) for index, task in enumerate(suite.tasks)]
    experts = {name: [tv.expert(index)[name] for index in range(len(tv))] for name in tv.base}
    theirs = peer.merging_with_regmean_weights(experts, products, reduce_non_diagonal_ratio=0.9)
    ours = merge("regmean:examples=24,off_diagonal=0.9,ridge=1e-12", suite).merged
    assert apart(ours, theirs, tv.base) < 1e-6
    assert apart(merge("average", suite).merged, theirs, tv.base) > 0.01


def _products(expert: Params, inputs: Inputs) -> dict[str, Tensor]:
    assert isinstance(inputs, Tensor)
    hidden = torch.tanh(inputs @ expert["first.weight"].T)
    return {"first": inputs.T @ inputs, "second": hidden.T @ hidden}


def test_dellas_probabilities_are_the_peers(monkeypatch):
    """Of the peer each entry is seen times the probability with which it is kept; its ε is half a window."""
    peer = pytest.importorskip("mergekit.sparsify")
    monkeypatch.setattr(torch, "bernoulli", lambda probabilities: probabilities)
    deltas = world(3, ONE).stacked[ONE[0]]
    theirs = torch.stack([peer.della_magprune(delta, density=0.7, epsilon=0.07) for delta in deltas])
    torch.testing.assert_close(theirs, deltas * keep_probabilities(deltas, 0.3, 0.14), rtol=1e-5, atol=0)

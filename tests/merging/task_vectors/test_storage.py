"""Task vectors in memory and in a mapped file: the same bits, one expert at a time, nothing half-written."""

import resource
import weakref

import pytest
import torch
from safetensors.torch import load_file

from bounds.types import InputError
from merging import TaskVectors, contract, merge, merged, suites
from merging.execution import Execution
from merging.learned import problem
from merging.params import partition
from merging.suites import toy
from merging.task_vectors import Storage
from merging.task_vectors.arithmetic import PART
from merging.task_vectors.storage import on_disk

SHAPES = {"odd": (7,), "layers.0.weight": (3, PART // 2 + 11), "scalar": (), "top": (5, 3)}


def draw(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def experts(count: int = 3, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, torch.Tensor]]:
    return {f"t{i}": draw(i + 1, dtype) for i in range(count)}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_mapped_and_in_memory_give_the_same_bits(tmp_path, dtype):
    base = draw(0)
    file = tmp_path / "tau.safetensors"
    memory = TaskVectors.from_experts(base, experts(), Storage(dtype))
    mapped = TaskVectors.from_experts(base, experts(), Storage(dtype, file))
    coefficients, blocks = torch.randn(3, len(SHAPES)), partition(base, "tensor")
    for left, right in ((memory, mapped), (memory, TaskVectors.open(file))):
        assert left.names == right.names
        one, other = (merged(tv, coefficients, blocks, out={}) for tv in (left, right))
        assert all(torch.equal(one[name], other[name]) for name in SHAPES)
        assert torch.equal(contract(left, one, blocks), contract(right, one, blocks))


def test_every_tensor_of_the_file_is_aligned_as_in_memory_and_any_reader_opens_it(tmp_path):
    file = tmp_path / "tau.safetensors"
    vectors = TaskVectors.from_experts(draw(0), experts(), Storage(file=file))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in (*vectors.base.values(), *vectors.stacked.values()))
    plain = load_file(file)
    assert torch.equal(plain["tau.top"][1], experts()["t1"]["top"] - draw(0)["top"])


def test_a_mapped_tensor_has_a_storage_of_its_own(tmp_path):
    """PyTorch lays tangents out like the storage of their parameter: with the file's they would be as large as it."""
    vectors = TaskVectors.from_experts(draw(0), experts(), Storage(file=tmp_path / "tau.safetensors"))
    for tensor in (*vectors.base.values(), *vectors.stacked.values()):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_fast_path_is_the_sum_written_out_for_any_number_of_threads():
    """BLAS orders a sum by its number of threads: results agree to rounding, not to the bit (docs/engine.md)."""
    vectors = TaskVectors.from_experts(draw(0), experts())
    blocks = partition(vectors.base, "block")
    coefficients, gradient = torch.randn(3, len(blocks)), draw(9)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append((merged(vectors, coefficients, blocks, out={}), contract(vectors, gradient, blocks)))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert all(torch.allclose(results[0][0][name], results[1][0][name], rtol=1e-6, atol=1e-6) for name in SHAPES)
    scale = float(results[0][1].abs().max())
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-6, atol=1e-6 * scale)
    for column, names in enumerate(blocks.values()):
        inner = torch.zeros(3, dtype=torch.float64)
        for name in names:
            deltas = vectors.stacked[name].double()
            exact = vectors.base[name].double() + torch.einsum("t,t...->...", coefficients[:, column].double(), deltas)
            assert torch.allclose(results[0][0][name].double(), exact, atol=1e-5)
            inner += (deltas * gradient[name].double()).reshape(3, -1).sum(dim=1)
        assert torch.allclose(results[0][1][:, column].double(), inner, rtol=1e-5, atol=1e-3)


def test_half_precision_is_added_up_in_float32():
    base = {"w": torch.zeros(40_000)}
    delta = {"w": torch.full((40_000,), 1.0)}
    vectors = TaskVectors.from_experts(base, {f"t{i}": delta for i in range(3)}, Storage(torch.bfloat16))
    coefficients = torch.tensor([[1.0], [2**-12], [2**-12]])  # bfloat16 sums would lose the small ones
    assert float(merged(vectors, coefficients, out={})["w"][0]) == 1 + 2**-11
    sums = contract(vectors, {"w": torch.full((40_000,), 1 + 2**-12)}, partition(base, "task"))
    assert float(sums[0, 0]) == pytest.approx(40_000 * (1 + 2**-12), abs=5)  # 40,000 if it lost the 2**-12


def test_one_expert_is_held_at_a_time(tmp_path):
    alive: list[weakref.ref] = []

    def reader(seed: int):
        def read():
            assert all(reference() is None for reference in alive), "an earlier expert is still in memory"
            params = draw(seed)
            alive.append(weakref.ref(params["top"]))
            return params

        return read

    for storage in (Storage(), Storage(file=tmp_path / "tau.safetensors")):
        alive.clear()
        TaskVectors.from_experts(draw(0), {f"t{i}": reader(i) for i in range(4)}, storage)
        assert len(alive) == 4


def test_the_file_is_used_again_and_never_for_other_experts(tmp_path):
    file = tmp_path / "tau.safetensors"
    first = suites.load("toy", Storage(file=file))
    changed = file.stat().st_mtime_ns
    again = suites.load("toy", Storage(file=file))
    assert file.stat().st_mtime_ns == changed
    lambdas = [merge("samerging", s.task_vectors, s.tasks, steps=3, examples=8).coefficients for s in (first, again)]
    plain = merge("samerging", toy.build().task_vectors, toy.build().tasks, steps=3, examples=8).coefficients
    assert plain is not None
    assert all(other is not None and torch.equal(plain, other) for other in lambdas)
    with pytest.raises(InputError, match="other task vectors; name another file"):
        toy.build(seed=1, storage=Storage(file=file))
    with pytest.raises(InputError, match="other task vectors"):
        toy.build(storage=Storage(torch.bfloat16, file))


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path):
    file = tmp_path / "tau.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match="expected room on a disk"):
            TaskVectors.from_experts(draw(0), experts(), Storage(file=file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_expert_that_vanishes_leaves_nothing(tmp_path):
    def gone():
        raise InputError("weights b.safetensors: expected a safetensors file; got nothing there; copy it")

    with pytest.raises(InputError, match="nothing there"):
        TaskVectors.from_experts(
            draw(0), {"a": draw(1), "b": gone}, Storage(file=tmp_path / "tau.safetensors"), {"b": "0"}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, "top": p["top"][:2]}, r"expert 't1' top: expected \(5, 3\); got \(2, 3\)"),
        (lambda p: {**p, "top": p["top"].double()}, "expected torch.float32 as in the first expert; got torch.float64"),
        (lambda p: {**p, "top": p["top"] * float("nan")}, "expected finite numbers"),
        (lambda p: {k: v for k, v in p.items() if k != "top"}, r"missing \['top'\]"),
    ],
)
def test_experts_that_do_not_fit_are_refused(change, message, tmp_path):
    broken = {name: (change(p) if name == "t1" else p) for name, p in experts().items()}
    with pytest.raises(InputError, match=message):
        TaskVectors.from_experts(draw(0), broken, Storage(file=tmp_path / "tau.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_refused(tmp_path):
    file = tmp_path / "tau.safetensors"
    TaskVectors.from_experts(draw(0), experts(), Storage(file=file))
    whole = file.read_bytes()
    for content, message in ((whole[:-64], "complete safetensors"), (b"x" * 100, "complete safetensors")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            TaskVectors.open(file)
    with pytest.raises(InputError, match="nothing there"):
        TaskVectors.open(tmp_path / "none")
    with pytest.raises(InputError, match="a float type"):
        Storage(torch.int8)
    with pytest.raises(InputError, match=r"expected \(2, 7\); got \(2, 7, 1\)"):
        TaskVectors.from_stacked(draw(0), {name: torch.zeros(2, *s, 1) for name, s in SHAPES.items()}, ["a", "b"])


def test_large_teacher_scores_live_in_a_file_and_change_nothing(tmp_path, monkeypatch):
    def coefficients(folder):
        suite = toy.build()
        execution = Execution(checkpoint=folder / "c")
        result = merge("samerging", suite.task_vectors, suite.tasks, execution=execution, steps=3, examples=8)
        assert result.coefficients is not None
        return result.coefficients

    expected = coefficients(tmp_path)
    kept = []
    monkeypatch.setattr(problem, "LARGE", 0)
    monkeypatch.setattr(problem, "on_disk", lambda *arguments: kept.append(1) or on_disk(*arguments))
    assert torch.equal(coefficients(tmp_path), expected)
    assert len(kept) == 3
    assert list(tmp_path.iterdir()) == []

"""The mapped file: every bit of header and tensors is checked when it is opened."""

import json

import pytest
import torch

from bounds.types import InputError
from merging import TaskVectors, records
from merging.task_vectors import Storage, mapped
from tests.fuzz import _packed, _unpacked

BASE = {"w": torch.arange(6.0).reshape(2, 3), "layers.0.b": torch.ones(5)}
EXPERTS = {name: {key: value + 1 for key, value in BASE.items()} for name in ("a", "b")}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tau.safetensors"
    TaskVectors.from_experts(BASE, EXPERTS, Storage(file=path), {"a": "0"})
    return path


def test_a_flipped_bit_of_any_tensor_or_of_the_header_is_refused(file):
    whole = file.read_bytes()
    found = mapped.read_header(file)
    used = [range(found.start + p.data_offsets[0], found.start + p.data_offsets[1]) for p in found.places.values()]
    names = list(found.places)
    places = [at for name, part in zip(names, used, strict=True) if not name.startswith("padding.") for at in part]
    for number, at in enumerate([*range(len(whole[: found.start].rstrip())), *places]):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << number % 8
        file.unlink()  # the one before may still be mapped
        file.write_bytes(bytes(damaged))
        with pytest.raises(InputError):
            TaskVectors.open(file)


def test_what_was_verified_is_not_read_again(file):
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:-70] + bytes(70))
    with pytest.raises(InputError, match=r"tau\.layers\.0\.b: expected what was written"):
        TaskVectors.open(file)
    assert TaskVectors.open(file, verified=True).names == ("a", "b")


def test_tensors_larger_than_a_chunk_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "CHUNK", 16)
    path = tmp_path / "tau.safetensors"
    for dtype in (None, torch.bfloat16, torch.float16, torch.float64):
        path.unlink(missing_ok=True)
        TaskVectors.from_experts(BASE, EXPERTS, Storage(dtype, path))
        assert torch.equal(TaskVectors.open(path).stacked["w"].float(), torch.ones(2, 2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(names=["a"]), r"tau.w: expected \[1, 2, 3\]; got \[2, 2, 3\]"),
        (lambda c: c.update(names=["a", "a"]), "distinct names"),
        (lambda c: c.update(names={"a": 1}), "names: expected"),
        (lambda c: c.update(order=["w"]), "tensors: expected base and tau of every parameter"),
        (lambda c: c["digests"].pop("tau.w"), "digests: expected base and tau"),
        (lambda c: c["sources"].update(a=1), "sources.a: expected a valid string; got 1"),
        (lambda c: c.pop("sources"), "sources: expected .*; got nothing"),
        (lambda c: c.update(more=[1], places=c.pop("places")), "more: "),
        (lambda c: c["places"]["tau.w"].update(dtype="I32"), "expected numbers of a float type; got I32"),
        (lambda c: c["places"]["tau.w"].update(shape=[2, 3, 2]), r"expected \[2, 2, 3\]"),
        (lambda c: c["places"]["tau.w"].update(shape=[2**40, 3, 2]), "expected a complete safetensors file"),
        (lambda c: c.update(schema="mergebound.task_vectors/1"), "expected schema mergebound.task_vectors/2"),
    ],
)
def test_headers_that_fit_their_digest_and_are_wrong_are_refused(file, change, message):
    content = _unpacked(file.read_bytes())
    change(content)
    rest = {name: value for name, value in content.items() if name not in ("bytes", records.DIGEST)}
    file.unlink()
    file.write_bytes(_packed({**records.seal(rest), "bytes": content["bytes"]}))
    with pytest.raises(InputError, match=message) as caught:
        TaskVectors.open(file)
    assert "\n" not in str(caught.value)


def test_nan_that_fits_its_digest_is_refused(file):
    content = _unpacked(file.read_bytes())
    start, end = content["places"]["tau.w"]["data_offsets"]
    nan = torch.full((2, 2, 3), torch.nan)
    content["bytes"] = content["bytes"][:start] + nan.numpy().tobytes() + content["bytes"][end:]
    content["digests"]["tau.w"] = records.tensor_digest(nan)
    rest = {name: value for name, value in content.items() if name not in ("bytes", records.DIGEST)}
    file.unlink()
    file.write_bytes(_packed({**records.seal(rest), "bytes": content["bytes"]}))
    with pytest.raises(InputError, match=r"tau\.w: expected finite numbers"):
        TaskVectors.open(file)


def test_the_digests_are_those_of_the_tensors_as_any_tool_sees_them(file):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        digests = json.loads(opened.metadata()["digests"])
        assert {name: records.tensor_digest(opened.get_tensor(name)) for name in digests} == digests

"""Records: a digest that sees every change, archives that are looked at before they are unpacked, one line for each."""

import copy
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from bounds.types import InputError
from merging import records
from merging.params import finite

SCHEMA = "test/1"
CONTENT = {
    "schema": SCHEMA,
    "weights": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5, dtype=torch.bfloat16)},
    "rows": [torch.ones(2, dtype=torch.bool), torch.empty(0, 3)],
    "numbers": {0: 1, "x": 0.5, "none": None},
}


def read(path):
    return records.load(path, SCHEMA, f"record {path}", "make it again")


def test_a_record_comes_back(tmp_path):
    records.save(tmp_path / "r", CONTENT)
    found = read(tmp_path / "r")
    assert records.digest(found) == records.digest(CONTENT)
    assert list(found) == list(CONTENT)
    assert torch.equal(found["weights"]["a"], CONTENT["weights"]["a"])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["weights"]["a"][0, 0].add_(1e-6),
        lambda c: c["weights"].update(a=c["weights"]["a"].reshape(3, 2)),
        lambda c: c["weights"].update(a=c["weights"]["a"].double()),
        lambda c: c["weights"].update(c=c["weights"].pop("a")),
        lambda c: c.update(weights=dict(reversed(c["weights"].items()))),
        lambda c: c["rows"].reverse(),
        lambda c: c.update(rows=tuple(c["rows"])),
        lambda c: c["numbers"].update({0: 1.0}),
        lambda c: c["numbers"].update({0: True}),
        lambda c: c.update(numbers={"0": 1, "x": 0.5, "none": None}),
        lambda c: c["numbers"].update(none="None"),
    ],
)
def test_the_digest_sees_bytes_shapes_dtypes_names_order_and_types(change):
    changed = copy.deepcopy(CONTENT)
    assert records.digest(changed) == records.digest(CONTENT)
    change(changed)
    assert records.digest(changed) != records.digest(CONTENT)


def test_the_digest_does_not_depend_on_strides_or_threads():
    value = torch.randn(300, 400)
    turned = value.T.contiguous().T
    assert records.digest(value) == records.digest(turned)
    many = {str(i): torch.randn(10) for i in range(40)}
    expected, before = records.digest(many), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert records.digest(many) == expected
    finally:
        torch.set_num_threads(before)


def test_of_a_view_only_what_is_seen_is_written_and_an_expanded_tensor_is_written_out(tmp_path):
    views = {"part": torch.zeros(100_000)[:3], "wide": torch.ones(1).expand(50_000)}
    records.save(tmp_path / "r", {"schema": SCHEMA, **views})
    assert (tmp_path / "r").stat().st_size < 300_000
    assert all(torch.equal(read(tmp_path / "r")[name], view) for name, view in views.items())


def test_numbers_of_numpy_become_pythons(tmp_path):
    records.save(tmp_path / "r", {"schema": SCHEMA, "x": [np.float64(0.1)], "yes": True})
    found = read(tmp_path / "r")
    assert found == {"schema": SCHEMA, "x": [0.1], "yes": True}
    assert type(found["x"][0]) is float
    assert found["yes"] is True


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", torch.float32, print])
def test_what_is_neither_tensor_nor_plain_is_not_written(tmp_path, value):
    with pytest.raises(InputError, match="tensors and plain values only"):
        records.save(tmp_path / "r", {"schema": SCHEMA, "value": value})
    deep = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(InputError, match="nested deeper"):
        records.seal({"schema": SCHEMA, "value": deep})


def test_every_flipped_bit_of_a_number_is_refused(tmp_path):
    path = tmp_path / "r"
    records.save(path, CONTENT)
    whole, weights = path.read_bytes(), CONTENT["weights"]["a"].numpy().tobytes()
    at = whole.index(weights)
    for bit in range(8 * len(weights)):
        damaged = bytearray(whole)
        damaged[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        with pytest.raises(InputError, match="damaged or changed since"):
            read(path)


class Payload:
    def __reduce__(self):
        return bytearray, (10**15,)


def archive(pickled: bytes, compression=zipfile.ZIP_STORED, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **more}.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def expanded() -> bytes:
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, "digest": "", "x": torch.zeros(1).expand(10**6, 10**6)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: archive(pickle.dumps(Payload(), 2)), "it names __builtin__ bytearray"),
        (lambda: archive(pickle.dumps([0] * 10**6, 2), zipfile.ZIP_DEFLATED), "compressed entries"),
        (expanded, "a tensor of 4000000000000 bytes in a file of"),
        (lambda: archive(pickle.dumps([1], 2)), "expected schema test/1; got a list"),
        (lambda: archive(b"not a pickle"), "tensors and plain values only"),
        (lambda: b"PK\x05\x06" + bytes(18), "tensors and plain values only"),
        (lambda: b"", "0 bytes of something else"),
    ],
)
def test_bombs_and_forged_archives_are_refused_before_anything_is_made_of_them(tmp_path, content, message):
    (tmp_path / "r").write_bytes(content())
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "r")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "expected JSON"),
        ('{"schema": "test/1", "x": NaN}', "expected JSON"),
        ("\udcff", "expected JSON"),
        ("[]", "expected schema test/1; got a list"),
        ("{}", "got no schema"),
        ('{"schema": ["test/1"]}', "expected schema test/1"),
        ('{"schema": "test/1", "x": 1}', "a digest; got"),
        ('{"schema": "test/1", "x": 1, "digest": 3}', "a digest; got"),
    ],
)
def test_json_that_is_no_record_is_refused(tmp_path, text, message):
    (tmp_path / "r").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        records.read_json(tmp_path / "r", SCHEMA, "record", "make it again")


def test_a_json_record_may_be_laid_out_anew_but_not_changed(tmp_path):
    path, content = tmp_path / "r", {"schema": SCHEMA, "x": [1, 2.0, 1e-300, "ü"], "y": None}
    path.write_text(records.to_json(content, indent=1), encoding="utf-8")
    assert records.read_json(path, SCHEMA, "r", "") == content
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    assert records.read_json(path, SCHEMA, "r", "") == content
    path.write_text(path.read_text(encoding="utf-8").replace("2.0", "2"), encoding="utf-8")
    with pytest.raises(InputError, match="damaged or changed since"):
        records.read_json(path, SCHEMA, "r", "")


@pytest.mark.parametrize("value", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf"), float("-inf")])])
def test_numbers_that_are_not_finite_are_seen(value):
    assert not finite(value)


def test_large_numbers_are_finite():
    assert finite(torch.full((4,), 3e38))
    assert finite(torch.full((4,), 6e4, dtype=torch.float16))
    assert finite(torch.empty(0))

"""NumPy archives: arrays by name, mapped where they are not packed; damaged and foreign ones in one line."""

import numpy as np
import pytest

from bounds.types import InputError
from merging.data import Source, read

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 3, 5)).astype(np.float32), RNG.integers(0, 4, 20)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("inputs", "labels"), ("images", "label"), ("x", "y")])
def test_arrays_are_found_by_their_usual_names(tmp_path, save, names):
    save(tmp_path / "a.npz", **dict(zip(names, (X, Y), strict=True)))
    found = read(Source(path="a.npz"), tmp_path)
    assert found.labels is not None
    assert np.array_equal(np.stack(list(found.inputs)), X)
    assert found.labels.tolist() == Y.tolist()


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_that_is_not_packed_is_mapped(tmp_path, order):
    np.savez(tmp_path / "a.npz", other=Y, x=np.asarray(X, order=order), y=Y[:, None])
    found = read(Source(path="a.npz"), tmp_path)
    assert isinstance(found.inputs, np.memmap)
    assert np.array_equal(found.inputs, X)
    assert found.labels is not None
    assert found.labels.tolist() == Y.tolist()


def test_arrays_of_a_split_and_names_of_classes(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2], class_names=np.array([*"abcd"]))
    found = read(Source(path="a.npz", split="test"), tmp_path)
    assert (len(found), found.class_names) == (2, ("a", "b", "c", "d"))
    np.savez(tmp_path / "b.npz", train_images=X, train_labels=Y[:, None], test_images=X, test_labels=Y)
    assert len(read(Source(path="b.npz", split="train"), tmp_path)) == 20
    with pytest.raises(InputError, match=r"one array named inputs_val or val_inputs.*got arrays x_train, y_train"):
        read(Source(path="a.npz", split="val"), tmp_path)


def test_texts_and_named_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.array(["a", "größer"]), second=np.array(["b", ""]), kind=np.array(["p", "n"]))
    found = read(Source(path="a.npz", text=("first", "second"), label="kind"), tmp_path)
    assert list(found.inputs) == [("a", "b"), ("größer", "")]
    assert found.labels is not None
    assert (found.labels.tolist(), found.class_names) == ([1, 0], ("n", "p"))
    assert type(read(Source(path="a.npz", text="first", label=None), tmp_path).inputs[1]) is str


BAD = {
    "objects": ({"x": np.array([{}, {}]), "y": Y[:2]}, "array x: expected numbers or texts; got pickled objects"),
    "both": ({"x": X, "inputs": X, "y": Y}, "one array named inputs or images or x; got inputs and x"),
    "none": ({"z": X, "y": Y}, "got arrays z, y"),
    "no labels": ({"x": X}, "one array named labels or label or y; got arrays x; .*label: null"),
    "lengths": ({"x": X, "y": Y[:3]}, r"one row per example; got shapes \(20, 3, 5\) and \(3,\)"),
    "number": ({"x": np.array(3.0), "y": Y}, r"got shapes \(\) and \(20,\)"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "expected rows with examples; got none"),
    "fractions": ({"x": X, "y": Y.astype(float)}, "label, data .*, row 0: .* got the fraction"),
    "one-hot": ({"x": X, "y": np.eye(4)[Y]}, "row 0: expected one label; got 4 numbers"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_meant_is_refused(tmp_path, save, arrays, message):
    save(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message) as found:
        read(Source(path="a.npz"), tmp_path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_and_foreign_files_are_refused(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x=X, y=Y)
    whole = bytearray(path.read_bytes())
    flipped = whole.copy()
    flipped[len(whole) // 3] ^= 255
    np.save(tmp_path / "b.npy", X)
    for content in (b"", b"text", whole[: len(whole) // 2], flipped, (tmp_path / "b.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"data .*a\.npz"):
            read(Source(path="a.npz"), tmp_path)


def test_texts_are_wanted_where_they_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", text=X, y=Y)
    with pytest.raises(InputError, match=r"row 0: expected one text per row; got float32 of shape \(20, 3, 5\)"):
        read(Source(path="a.npz", text="text"), tmp_path)

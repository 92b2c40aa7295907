"""What is prepared once: the same numbers in memory and mapped, never half-written, found again, larger than memory."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from bounds.types import InputError
from merging.data import prepared
from merging.data.prepared import BATCH

COUNT = 2 * BATCH + 3


class Calls:
    """A preparation that notes the batches it was handed."""

    def __init__(self, prepare):
        self.prepare, self.batches = prepare, []

    def __call__(self, batch):
        self.batches.append(list(batch))
        return self.prepare(batch)


def tokens(batch):
    rows = torch.tensor(list(batch))[:, None] * torch.arange(1, 5)
    odd = (rows % 2 == 1)[:, :3]
    return {"also": odd, "ids": rows, "image": torch.stack([odd.float(), odd.float() / 3], 1), "half": rows.bfloat16()}


def same(one, other):
    assert one.keys() == other.keys()
    assert list(one) == list(other)
    assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


def test_mapped_and_in_memory_are_the_batches_put_together(tmp_path):
    memory = prepared(range(COUNT), tokens, "key", None, "numbers")
    assert isinstance(memory, dict)
    mapped = prepared(range(COUNT), tokens, "key", tmp_path / "new" / "folder", "numbers")
    same(memory, tokens(range(COUNT)))
    assert isinstance(mapped, dict)
    same(mapped, memory)
    [file] = (tmp_path / "new" / "folder").iterdir()
    theirs = load_file(file)
    same({name: theirs[name] for name in memory}, memory)
    for tensor in mapped.values():
        assert tensor.data_ptr() % tensor.itemsize == 0


@pytest.mark.parametrize("kept", [True, False])
def test_one_tensor_stays_one(tmp_path, kept):
    found = prepared([1.0, 2.0], torch.tensor, "key", tmp_path if kept else None, "numbers")
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [1.0, 2.0]
    assert isinstance(prepared([1.0], lambda b: {"x": torch.tensor(b)}, "other", tmp_path, "numbers"), dict)


def test_it_is_prepared_once_for_a_key_and_a_number_of_examples(tmp_path):
    calls = Calls(tokens)
    first = prepared(range(COUNT), calls, "key", tmp_path, "numbers")
    assert [len(batch) for batch in calls.batches] == [BATCH, BATCH, 3]
    same(prepared(range(COUNT), calls, "key", tmp_path, "numbers"), first)
    assert len(calls.batches) == 3
    prepared(range(COUNT), calls, "another key", tmp_path, "numbers")
    prepared(range(3), calls, "key", tmp_path, "numbers")
    assert len(calls.batches) == 7
    assert len(list(tmp_path.iterdir())) == 3


def test_progress_is_told_every_batch():
    told = []

    def progress(steps, description):
        for step in steps:
            told.append((step, description))
            yield step

    prepared(range(COUNT), tokens, "key", None, "numbers", progress)
    assert told == [(step, "preparing numbers") for step in range(3)]


def damages(content):
    """Each way a file can differ: cut, longer, a bit in every 97th byte and in each of the header."""
    yield content[:-1], "cut"
    yield b"", "empty"
    yield content + b"\0", "longer"
    yield content.replace(b'"I64"', b'"F64"'), "another type"
    end = 8 + int.from_bytes(content[:8], "little")
    blank = len(content[:end].rstrip(b" "))
    for place in (*range(0, blank, 5), *range(end, len(content), 997)):
        flipped = bytearray(content)
        flipped[place] ^= 4
        yield bytes(flipped), f"byte {place}"


def test_a_damaged_file_is_made_again_with_a_line_that_says_so(tmp_path):
    wanted = prepared(range(COUNT), tokens, "key", None, "numbers")
    prepared(range(COUNT), tokens, "key", tmp_path, "numbers")
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    seen = 0
    for damaged, how in damages(content):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="numbers is prepared again: prepared data .*damaged") as told:
            found = prepared(range(COUNT), tokens, "key", tmp_path, "numbers")
        assert len(told) == 1, how
        assert "\n" not in str(told[0].message)
        same(found, wanted)
        assert file.read_bytes() == content
        seen += 1
    assert seen > 50


def test_a_run_that_fails_leaves_nothing(tmp_path):
    def failing(batch):
        if 300 in batch:
            raise KeyboardInterrupt
        return tokens(batch)

    with pytest.raises(KeyboardInterrupt):
        prepared(range(COUNT), failing, "key", tmp_path, "numbers")
    assert list(tmp_path.iterdir()) == []


def lengths(batch):
    return torch.zeros(len(batch), 5 if 300 in batch else 4)


BAD = {
    "lengths": (lengths, r"examples 256\.\.511: expected inputs \[4\] float32 per example; got inputs \[5\] float32"),
    "types": (lambda b: torch.zeros(len(b)).to(torch.int64 if 300 in b else torch.float32), r"got inputs \[\] int64"),
    "names": (
        lambda b: {"a" if 300 in b else "b": torch.zeros(len(b))},
        r"expected b \[\] float32 .* got a \[\] float32",
    ),
    "rows": (lambda b: torch.zeros(3, 4), r"examples 0\.\.255: expected tensors with 256 rows; got \(3, 4\)"),
    "list": (lambda b: [0] * len(b), "expected tensors with 256 rows; got list"),
    "lists": (lambda b: {"a": [0] * len(b)}, "expected tensors with 256 rows; got list"),
    "nothing": (lambda b: {}, "expected tensors with 256 rows; got dict"),
    "number": (lambda b: torch.tensor(0.0), r"expected tensors with 256 rows; got \(\)"),
    "complex": (lambda b: torch.zeros(len(b), dtype=torch.complex64), "numbers of a usual type; got torch.complex64"),
}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("prepare", "message"), BAD.values(), ids=BAD)
def test_batches_that_do_not_fit_together_are_refused(tmp_path, prepare, message, kept):
    with pytest.raises(InputError, match="prepared numbers, .*" + message):
        prepared(range(COUNT), prepare, "key", tmp_path if kept else None, "numbers")
    assert list(tmp_path.iterdir()) == []


def test_no_examples_and_a_place_that_is_no_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="numbers: expected at least one example"):
        prepared([], tokens, "key", None, "numbers")
    (tmp_path / "file").write_text("")
    calls = Calls(tokens)
    with pytest.raises(InputError, match="expected a folder that can be made and written"):
        prepared(range(3), calls, "key", tmp_path / "file" / "in", "numbers")
    assert calls.batches == []


LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from merging.data import prepared

ROWS, WIDTH, ROOM = 10_000, 4096, 60  # 164 MB of float32; MB that may be had beside what is used now


def rows(batch):
    return torch.tensor(batch, dtype=torch.float32)[:, None].expand(-1, WIDTH)


def data():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024


folder = Path(sys.argv[1])
torch.set_num_threads(1)
prepared(range(300), rows, "warm", folder, "rows")
resource.setrlimit(resource.RLIMIT_DATA, (data() + ROOM * 2**20,) * 2)
found = {}
for name in ("made", "read"):
    mapped = prepared(range(ROWS), rows, "key", folder, "rows")
    found[name] = [float(mapped[start : start + 256].double().sum()) for start in range(0, ROWS, 256)]
try:
    prepared(range(ROWS), rows, "key", None, "rows")
    found["memory"] = "held"
except (MemoryError, RuntimeError):
    found["memory"] = "refused"
print(json.dumps(found))
for file in folder.iterdir():
    file.unlink()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_what_is_larger_than_memory_is_made_and_read(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = [float(4096 * sum(range(start, min(start + 256, 10_000)))) for start in range(0, 10_000, 256)]
    assert found == {"made": expected, "read": expected, "memory": "refused"}

"""Pickled modules: their weights, and nothing of what they ask for."""

import builtins
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from bounds.types import InputError
from merging.checkpoints import read_pickled
from merging.checkpoints.unpickling import Unpickler

FORMATS = pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])


class Net(nn.Module):
    """Tied weights, a buffer that is not saved, an empty place, integer buffers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(4, dtype=torch.float64)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("left_out", torch.arange(5), persistent=False)
        self.register_buffer("empty", None)
        self.nothing = None
        self.register_module("none", None)
        self.half = nn.Linear(2, 2).to(torch.bfloat16)
        self.kinds = {nn.Linear, nn.Embedding}


def save(value: Any, path: Path, modern: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=modern)
    return path


def same(found, module):
    state = module.state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)


@FORMATS
@pytest.mark.parametrize("module", [Net(), resnet18(num_classes=3), nn.DataParallel(nn.Linear(3, 2))], ids=str)
def test_the_state_dict_of_a_module(module, modern, tmp_path):
    found = read_pickled(save(module, tmp_path / "net.pt", modern))
    same(found.state, module)
    assert list(found.state) == list(module.state_dict())
    assert "torch.nn.modules.linear.Linear" in found.imports


@FORMATS
def test_an_open_clip_expert_with_its_text_tower(modern, tmp_path):
    vision: Any = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8}
    text: Any = {"context_length": 5, "vocab_size": 20, "width": 16, "heads": 2, "layers": 2}
    clip = open_clip.CLIP(8, vision, text)
    encoder = nn.Module()
    encoder.model = clip
    found = read_pickled(save(encoder, tmp_path / "encoder.pt", modern))
    same(found.state, encoder)
    assert "model.visual.conv1.weight" in found.state
    assert "model.transformer.resblocks.0.attn.in_proj_weight" in found.state
    assert "open_clip.model.CLIP" in found.imports


@FORMATS
def test_plain_state_dicts_import_nothing(modern, tmp_path):
    net = Net()
    for content in (net.state_dict(), {"state_dict": net.state_dict(), "epoch": 3}, {"model": net.state_dict()}):
        found = read_pickled(save(content, tmp_path / "state.pt", modern))
        same(found.state, net)
        assert found.imports == ()


def test_several_modules_keep_their_keys(tmp_path):
    both = {"encoder": nn.Linear(2, 3), "head": nn.Linear(3, 2), "note": "x"}
    found = read_pickled(save(both, tmp_path / "both.pt")).state
    assert list(found) == ["encoder.weight", "encoder.bias", "head.weight", "head.bias"]
    assert torch.equal(found["head.bias"], both["head"].bias)


@FORMATS
def test_strides_offsets_and_subclasses(modern, tmp_path):
    whole = torch.arange(24.0)
    state = {
        "transposed": whole.reshape(4, 6).T,
        "part": whole[5:9],
        "scalar": torch.tensor(2.0),
        "none": torch.ones(0, 3),
    }
    state["parameter"] = nn.Parameter(torch.ones(2))
    state["float8"] = torch.ones(3).to(torch.float8_e4m3fn)
    state["attributed"] = torch.ones(2)
    state["attributed"].note = "x"  # pyright: ignore
    found = read_pickled(save(state, tmp_path / "state.pt", modern)).state
    assert list(found) == list(state)
    assert all(torch.equal(found[name].float(), state[name].float()) for name in state)


class Payload:
    def __init__(self, function, *arguments):
        self.what = (function, arguments)

    def __reduce__(self):
        return self.what


def payloads(mark: str):
    yield Payload(os.system, f"touch {mark}")
    yield Payload(eval, f"open({mark!r}, 'w').close()")
    yield Payload(exec, f"open({mark!r}, 'w').close()")
    yield Payload(os.mkdir, mark)
    yield Payload(getattr, Payload(__import__, "os"), "system")
    yield Payload(builtins.print, Payload(os.system, f"touch {mark}"))


@FORMATS
@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("protocol", [2, 4])
def test_payloads_do_nothing_and_are_named(index, protocol, modern, tmp_path):
    mark = tmp_path / "mark"
    payload = list(payloads(str(mark)))[index]
    net = nn.Linear(2, 2)
    net.evil = payload  # pyright: ignore
    torch.save({"model": net, "deep": [({"x": payload},)]}, tmp_path / "net.pt", pickle_protocol=protocol,
               _use_new_zipfile_serialization=modern)  # fmt: skip
    found = read_pickled(tmp_path / "net.pt")
    assert not mark.exists()
    assert set(found.state) == {"weight", "bias"}
    assert any(name.endswith(f".{payload.what[0].__name__}") for name in found.imports)
    torch.load(tmp_path / "net.pt", weights_only=False)  # the same file does act where it is loaded as a pickle
    assert mark.exists() or index == 4


class Setting:
    """A class whose own code would run when it is read back."""

    ran = False

    def __setstate__(self, state):
        type(self).ran = True

    def __getstate__(self):
        return {"x": 1}

    def __setitem__(self, key, value):
        type(self).ran = True

    def append(self, value):
        type(self).ran = True

    def __hash__(self):
        return 1


def test_code_of_foreign_classes_is_not_run(tmp_path):
    net = nn.Linear(2, 2)
    net.odd = Setting()  # pyright: ignore
    net.key = {Setting(): 1}  # pyright: ignore
    path = save(net, tmp_path / "net.pt")
    Setting.ran = False
    assert set(read_pickled(path).state) == {"weight", "bias"}
    assert not Setting.ran


def archive(pickled: bytes, path: Path, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        for key, data in storages.items():
            file.writestr(f"a/data/{key[1:]}", data)
    return path


def read(pickled: bytes, size: int = 100):
    import io

    return Unpickler(io.BytesIO(pickled), lambda key, dtype, count: torch.zeros(count, dtype=dtype), size)


FORGED = {
    "attributes of a function": b"ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00evilK\x01sb.",
    "defaults of a function": b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.",
    "a class's attributes": b"cfoo\nbar\n}X\x08\x00\x00\x00__call__K\x01sb.",
    "an item of a class": b"cfoo\nbar\n(K\x01K\x02u.",
    "a dictionary's class": b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
    "a dtype": b"ctorch\nfloat32\n}X\x01\x00\x00\x00aK\x01sb.",
    "a storage's class": b"ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeK\x01sb.",
}


@pytest.mark.parametrize("name", FORGED)
def test_what_stands_for_names_cannot_be_changed(name):
    before = torch._utils._rebuild_tensor_v2.__defaults__  # pyright: ignore
    with pytest.raises(Exception):  # noqa: B017, PT011
        read(FORGED[name]).load()
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before  # pyright: ignore
    assert not hasattr(torch._utils._rebuild_tensor_v2, "evil")  # pyright: ignore


def test_no_real_object_is_handed_out():
    reader = read(b"N.")
    for module, name in [("os", "system"), ("torch", "load"), ("torch", "FloatStorage"), ("collections", "OrderedDict"),
                         ("torch._utils", "_rebuild_tensor_v2"), ("torch", "float32"), ("builtins", "set"),
                         ("builtins", "getattr"), ("torch.nn.modules.linear", "Linear")]:  # fmt: skip
        given = reader.find_class(module, name)
        assert getattr(given, "__module__", type(given).__module__).startswith("merging.checkpoints")
    assert reader.imports == ["os.system", "torch.load", "builtins.getattr", "torch.nn.modules.linear.Linear"]


class Tensors:
    """Pickles as a call that rebuilds a tensor with the numbers given."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.numbers, False, OrderedDict())  # pyright: ignore


class Persistent(pickle.Pickler):
    def persistent_id(self, obj):
        return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None


def forged(*numbers, count=4, key="0"):
    import io

    file = io.BytesIO()
    Persistent(file, 2).dump({"x": Tensors(("storage", torch.FloatStorage, key, "cpu", count), *numbers)})
    return file.getvalue()


def test_tensors_stay_within_their_numbers(tmp_path):
    good = archive(forged(0, (2, 2), (2, 1)), tmp_path / "good.pt", _0=b"\0" * 16)
    assert read_pickled(good).state["x"].shape == (2, 2)
    bad = {
        "beyond": forged(1, (2, 2), (2, 1)),
        "far strides": forged(0, (2, 2), (2**40, 1)),
        "negative offset": forged(-1, (2, 2), (2, 1)),
        "negative stride": forged(3, (2, 2), (-1, 1)),
        "expanded": forged(0, (10**6, 10**6), (0, 0)),
        "text": forged(0, ("a", 2), (2, 1)),
        "storage longer than its bytes": forged(0, (2, 2), (2, 1), count=5),
        "negative count": forged(0, (2, 2), (2, 1), count=-4),
        "no such storage": forged(0, (2, 2), (2, 1), key="1"),
        "a path": forged(0, (2, 2), (2, 1), key="../../data.pkl"),
    }
    for name, pickled in bad.items():
        with pytest.raises(InputError, match="copy the file again"):
            read_pickled(archive(pickled, tmp_path / f"{name}.pt", _0=b"\0" * 16))


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"p2147483647\n"])
def test_places_for_more_objects_than_bytes(put, tmp_path):
    path = archive(b"\x80\x02N" + put + b".", tmp_path / "x.pt")
    with pytest.raises(InputError, match="more objects than bytes"):
        read_pickled(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = save(nn.Linear(20, 20), tmp_path / "net.pt")
    weight = read_pickled(path).state["weight"].numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(weight) + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="CRC"):
        read_pickled(path)


@FORMATS
def test_a_cut_file(modern, tmp_path):
    data = save(nn.Linear(20, 20), tmp_path / "net.pt", modern).read_bytes()
    for count in (3, 40, len(data) // 2, len(data) - 1):
        (tmp_path / "net.pt").write_bytes(data[:count])
        with pytest.raises(InputError):
            read_pickled(tmp_path / "net.pt")


def test_modules_that_hold_themselves_or_spell_without_end(tmp_path):
    ring: Any = nn.Module()
    ring._modules["again"] = ring
    with pytest.raises(InputError, match="hold themselves"):
        read_pickled(save(ring, tmp_path / "ring.pt"))
    bush: Any = nn.Linear(1, 1)
    for _ in range(30):
        above: Any = nn.Module()
        above._modules.update(left=bush, right=bush)
        bush = above
    with pytest.raises(InputError, match="more than 100000 names"):
        read_pickled(save(bush, tmp_path / "bush.pt"))


def test_weights_that_cannot_be_read_are_refused_not_left_out(tmp_path):
    net = nn.Linear(2, 2)
    net.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(InputError, match=r"sparse: a torch\._utils\._rebuild_sparse_tensor, no plain tensor"):
        read_pickled(save(net, tmp_path / "net.pt"))


def test_pickles_without_modules(tmp_path):
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(InputError, match=r"a pickle that torch\.save did not write"):
        read_pickled(tmp_path / "plain.pt")
    with pytest.raises(InputError, match="no weights among it"):
        read_pickled(save({"a": 1}, tmp_path / "dict.pt"))

"""``python -m tests.fuzz --files 2000 --seed 0``: damage every kind of file that the program reads back, and read it.

A reader must refuse a damaged file in one line (a piece of a cache may count as absent) or return exactly what was
written, as when a bit of padding was flipped. A traceback is a fault, and so is other content than was written.
"""

from __future__ import annotations

import base64
import io
import json
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bounds.types import InputError
from diagnostics.figures.figure_files import MANIFEST, read_manifest, write_figures
from diagnostics.figures.svg import Drawing
from diagnostics.folder import read_report
from diagnostics.report import Splits, TaskSizes, build
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import TaskVectors, merge, records
from merging.artifact import load, save
from merging.commands import compare
from merging.commands.measure import Measurement
from merging.execution import Execution
from merging.learned import LearnedSettings, checkpoint, init, prepare, update
from merging.plain import to_plain
from merging.suites import toy
from merging.task_vectors import Storage

SAME, REFUSED, ABSENT, CHANGED, TRACEBACK = "same", "refused", "absent", "changed", "traceback"
FAULTS = (CHANGED, TRACEBACK)
SMALL: dict[str, Any] = {
    **dict.fromkeys(("held_out", "kernel", "train"), 4),
    **dict.fromkeys(("draws", "resamples"), 2),
    "weight_draws": 1,
    "points": 3,
    "control_points": 2,
    "gram": 0,
    "hessian": 0,
    "gibbs_draws": 1,
}
FREE = ("selection", "settings", "method_settings", "merge", "value")
"""Parts of a record that may hold any plain value: there another type is another valid file, once it is sealed."""


class Absent(Exception):
    """A reader treats the file as if it were not there."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: where it lies, how it is read (None or Absent: as if it were not there), and its decoded form."""

    name: str
    file: Path
    read: Callable[[Path], Any]
    decode: Callable[[bytes], dict[str, Any]]
    encode: Callable[[dict[str, Any]], bytes]


def kinds(folder: Path) -> list[Kind]:
    """Write one small file of every kind."""
    suite = toy.build()
    vectors, tasks = suite.task_vectors, suite.tasks
    artifact = merge("samerging", vectors, tasks, suite="toy", sources=suite.sources, steps=2, examples=4)
    save(artifact, folder / "out.pt")
    problem = prepare(
        vectors,
        tasks,
        LearnedSettings(steps=4, examples=4, batch=2, average="ema"),
        Execution(checkpoint=folder / "c", resume=True),
    )
    checkpoint.save(problem, update(problem, update(problem, init(problem))))
    experts = {name: vectors.expert(index) for index, name in enumerate(vectors.names)}
    TaskVectors.from_experts(vectors.base, experts, Storage(file=folder / "tau.safetensors"), suite.sources)
    cache = Cache(folder / "cache")
    sizes = Splits((TaskSizes("a", 3, {"train": 4}, False), TaskSizes("b", 2, {"test": 5}, True)))
    cache.data(Splits, "splits", "key", lambda: sizes)
    cache.save("piece", "key", {"scores": torch.randn(4, 3).double(), "classes": 3, "rows": [torch.ones(2)]})
    subject = Subject("m", "out.pt", artifact)
    report = build(Workspace([subject], lambda: suite, Settings(**SMALL)), ("accuracy",))
    (folder / "report.json").write_text(records.to_json(to_plain(report), indent=1), encoding="utf-8")
    write_figures(
        folder / "figures",
        "report",
        {"terms-1": Drawing('<svg viewBox="0 0 1 1"/>', base64.b64encode(b"png").decode())},
    )
    measured = Measurement(
        label="average",
        method="average",
        settings={"scale": 0.5},
        accuracy=[0.5],
        correct=["2:gA=="],
        cross_entropy=[1.0],
        kl=[0.1],
        distance=2.0,
        seconds=0.1,
        search_seconds=0.0,
        passes=100.0,
        memory=90.0,
    )
    kept = to_plain(compare.Kept(compare.KEPT, "key", measured))
    (folder / "average-key.json").write_text(records.to_json(kept), encoding="utf-8")

    def absent() -> Any:
        raise Absent

    def resumed(path: Path) -> Any:
        state = checkpoint.start(problem, init(problem))
        found = [state.coefficients.detach().clone(), state.generator.get_state(), dict(state.memory), state.history]
        update(problem, state)
        return [*found[:3], {name: values[:2] for name, values in state.history.items()}]

    def mapped(path: Path) -> Any:
        found = TaskVectors.open(path)
        tensors = (found.base, found.stacked)
        return [{name: value.clone() for name, value in params.items()} for params in tensors], found.names

    text = (lambda raw: json.loads(raw)), (lambda content: json.dumps(content).encode())
    archive = (lambda raw: torch.load(io.BytesIO(raw), weights_only=True)), _archived
    return [
        Kind("artifact", folder / "out.pt", lambda path: vars(load(path)), *archive),
        Kind("checkpoint", folder / "c", resumed, *archive),
        Kind("mapped task vectors", folder / "tau.safetensors", mapped, _unpacked, _packed),
        Kind(
            "cache, data",
            folder / "cache" / "splits-key.json",
            lambda path: to_plain(cache.data(Splits, "splits", "key", absent)),
            *text,
        ),
        Kind("cache, tensors", folder / "cache" / "piece-key.pt", lambda path: cache.load("piece", "key"), *archive),
        Kind("report", folder / "report.json", lambda path: to_plain(read_report(path)), *text),
        Kind("manifest", folder / "figures" / MANIFEST, lambda path: read_manifest(path.parent), *text),
        Kind("measurement", folder / "average-key.json", lambda path: to_plain(compare.read_kept(path, "key")), *text),
    ]


def _archived(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _unpacked(raw: bytes) -> dict[str, Any]:
    """Decode a mapped file: what its digest is taken of, and the bytes of its tensors."""
    length = int.from_bytes(raw[:8], "little")
    places = json.loads(raw[8 : 8 + length])
    metadata = places.pop("__metadata__")
    said = {name: text if name in ("schema", records.DIGEST) else json.loads(text) for name, text in metadata.items()}
    return {**said, "places": places, "bytes": raw[8 + length :]}


def _packed(content: dict[str, Any]) -> bytes:
    metadata = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in content.items()
        if name not in ("places", "bytes")
    }
    places = content.get("places")
    header = {"__metadata__": metadata, **(places if isinstance(places, dict) else {"places": places})}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content["bytes"]


# Damage --------------------------------------------------------------------------------------------------------------

Damage = Callable[[Kind, bytes, Sequence[bytes], random.Random], bytes]


def cut(kind: Kind, raw: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """End the file early."""
    return raw[: rng.randrange(len(raw))]


def flip(kind: Kind, raw: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Flip one bit, or some."""
    damaged = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 4, 20))):
        damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwrite(kind: Kind, raw: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Lose a block: zeros or noise in its place, or nothing."""
    start = rng.randrange(len(raw))
    size = min(len(raw) - start, rng.choice((1, 16, 512)))
    return raw[:start] + rng.choice((bytes(size), rng.randbytes(size), b"")) + raw[start + size :]


def swap(kind: Kind, raw: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Put a file of another kind in its place."""
    return rng.choice(others)


def edit(kind: Kind, raw: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Change a value, its type or its name in a file that stays well formed, as an editor would."""
    return kind.encode(_changed(kind.decode(raw), rng, free=True))


def forge(kind: Kind, raw: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Put a wrong type or nan into a file, leave a field out or add one, and seal it with a digest that fits."""
    content = kind.decode(raw)
    rest = {name: value for name, value in content.items() if name not in ("bytes", records.DIGEST)}
    changed = _changed(rest, rng, free=False)
    places = {"places": changed.pop("places")} if "places" in changed else {}  # the reader takes them last
    sealed = records.seal({**changed, **places})
    return kind.encode({**sealed, **{name: content[name] for name in ("bytes",) if name in content}})


DAMAGES: Mapping[str, Damage] = {f.__name__: f for f in (cut, flip, overwrite, swap, edit, forge)}


def _changed(content: dict[str, Any], rng: random.Random, *, free: bool) -> dict[str, Any]:
    """Return the content with one part changed; ``free``: also where any plain value may stand."""
    places = [path for path in _paths(content) if path[0] != "bytes"]
    if not free:  # a part that is None may become something else, and so may what is free
        places = [p for p in places if len(p) == 1 or not {*FREE} & {*p[:-1]}]
        places = [p for p in places if _at(content, p) is not None and not str(p[-1]).startswith("padding.")]
    path = rng.choice(places)
    above, name, value = _at(content, path[:-1]), path[-1], _at(content, path)
    if isinstance(above, dict) and len(path) == 1 and rng.random() < 0.3:
        kept = {key: part for key, part in above.items() if key != name}
        return rng.choice((kept, {**above, "more": 1}, {**kept, f"{name}s": value}))
    return _replaced(content, path, _wrong(value, rng))


def _wrong(value: Any, rng: random.Random) -> Any:
    """Return a value of another type; of a tensor of numbers also one with nan."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and rng.random() < 0.5:
        return torch.full_like(value, torch.nan)
    choices: tuple[Any, ...] = ("text", 7, [["text"]], {"more": [1]})
    if isinstance(value, float):
        choices = ("text", [1.0], True)
    if isinstance(value, int):  # not 1.5: an integer may stand where any number is due
        choices = ("text", [1])
    return rng.choice([choice for choice in choices if not isinstance(choice, type(value))])


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every part of a nested value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return [way for name, part in parts for way in ((*path, name), *_paths(part, (*path, name)))]


def _at(value: Any, path: Sequence[Any]) -> Any:
    for name in path:
        value = value[name]
    return value


def _replaced(value: Any, path: Sequence[Any], part: Any) -> Any:
    if not path:
        return part
    if isinstance(value, dict):
        return {**value, path[0]: _replaced(value[path[0]], path[1:], part)}
    parts = list(value)
    parts[path[0]] = _replaced(parts[path[0]], path[1:], part)
    return type(value)(parts)


# Reading -------------------------------------------------------------------------------------------------------------


def outcome(kind: Kind, expected: str) -> tuple[str, str]:
    """Read the file of a kind; return what happened, and the message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = kind.read(kind.file)
    except InputError as error:
        return (REFUSED, str(error)) if "\n" not in str(error) else (TRACEBACK, "more than one line")
    except Absent:
        return ABSENT, ""
    except Exception as error:  # whatever else a reader raises is what this program is here to find
        return TRACEBACK, f"{type(error).__name__}: {error}"
    if found is None:
        return ABSENT, ""
    return (SAME, "") if records.digest(found) == expected else (CHANGED, "")


@dataclass(frozen=True)
class Finding:
    """What became of one damaged file."""

    kind: str
    damage: str
    seed: int
    outcome: str
    message: str


def fuzz(files: int, seed: int) -> list[Finding]:
    """Damage files of all kinds in turn, in all ways in turn, and read each."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        found = []
        all_kinds = kinds(Path(name))
        originals = [kind.file.read_bytes() for kind in all_kinds]
        expected = [records.digest(kind.read(kind.file)) for kind in all_kinds]
        for number in range(files):
            rng = random.Random(seed + number)
            which = number % len(all_kinds)
            damage = list(DAMAGES)[number // len(all_kinds) % len(DAMAGES)]
            kind, raw = all_kinds[which], originals[which]
            others = [other for index, other in enumerate(originals) if index != which]
            kind.file.unlink(missing_ok=True)  # an earlier one may still be mapped
            kind.file.write_bytes(DAMAGES[damage](kind, raw, others, rng))
            found.append(Finding(kind.name, damage, seed + number, *outcome(kind, expected[which])))
    return found


@dataclass(frozen=True)
class Command:
    """Damage every kind of file that the program reads back, and read it."""

    files: int = 2000
    """Number of damaged files."""
    seed: int = 0
    """Seed of the first; the next ones count from it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 no fault, 1 faults)."""
    command = tyro.cli(Command, args=arguments, prog="python -m tests.fuzz")
    found = fuzz(command.files, command.seed)
    table, output = Table(title=f"{command.files} damaged files"), Console()
    outcomes = (REFUSED, ABSENT, SAME, CHANGED, TRACEBACK)
    for column in ("file", *outcomes):
        table.add_column(column)
    for name in dict.fromkeys(f.kind for f in found):
        counts = Counter(f.outcome for f in found if f.kind == name)
        table.add_row(name, *(str(counts[each]) for each in outcomes))
    output.print(table)
    faults = [f for f in found if f.outcome in FAULTS]
    for fault in faults:
        output.print(f"{fault.kind}, {fault.damage}, seed {fault.seed}: {fault.outcome} {fault.message}", markup=False)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

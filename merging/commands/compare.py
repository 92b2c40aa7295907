"""``python -m merging compare --suite mini8 --methods all --out FOLDER``: every method on one suite, ranked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bounds.types import InputError, meant, refuse
from merging import records, suites
from merging.commands.compare_rows import Found, ranked
from merging.commands.compare_table import Shown
from merging.commands.measure import REFERENCES, Measurement, Spec, measure_apart
from merging.commands.options import options
from merging.commands.packed import unpack
from merging.commands.terminal import console, plain, run, stage, track
from merging.files import check_destination, check_folder, encoded, write
from merging.methods import METHODS, specification
from merging.plain import from_plain, to_plain
from merging.suites import Suite, published

KEPT = "mergebound.measurement/2"
SUFFIXES = ("json", "csv", "md", "svg", "png")
"""Of the files that are written into the folder, besides the results."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Merge a suite's experts with each method, and rank them: terminal, JSON, CSV, Markdown and a figure.

    Each row has its difference to the best merge and to the one ranked above it, with standard errors paired over the
    test examples; ≈ marks what these do not tell apart (docs/methods.md).

    Each method runs in a process of its own. Results are kept in OUT/results by method, settings and suite; a second
    run measures only what is missing there (delete a file to measure it again).
    """

    suite: str = "mini8"
    """Experts and tasks: mini8, text8, toy, a suite file .yaml, clip-ta8 and the like, or package.module:function."""
    methods: tuple[str, ...] = ("all",)
    """Rows of the table of methods (mergebound list), or all; with settings as ties:density=0.1,scale=1, and with
    post-processings as tsv_m+svc, ties:scale=1+lines:rise=0.5 or all+svc."""
    out: Path = Path("compare")
    """Folder of results and tables."""
    seeds: int = 1
    """Merge each method that draws calibration examples, batches or masks with the seeds 0 to SEEDS - 1: means over
    seeds, and errors that hold for other draws. Methods that draw nothing, or whose seed is given, are merged once."""
    published: str = ""
    """Show the published normalised gains of a suite beside: clip-ta8:ViT-B-32 or clip-ta8:ViT-L-14."""
    table: str = "compare"
    """Name of the tables and the figure, TABLE.json and so on: several choices of rows can share a folder."""
    threads: int = 1
    """Threads of PyTorch. The shipped suites are small and run fastest on one; large models want every core."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(arguments))


def _files(command: Command) -> list[str]:
    """Return the names of the tables and the figure.

    Raises:
        InputError: a name that is no plain file name.
    """
    if not re.fullmatch(r"\w[\w.-]*", command.table):
        refuse("table", expected="a plain file name", got=repr(command.table), cure="use letters, digits, - and _")
    return [f"{command.table}.{suffix}" for suffix in SUFFIXES]


def _main(arguments: Sequence[str]) -> None:
    command = options(Command, arguments, "mergebound compare")
    output, shown = console(), compare(command)
    shown.show(output)
    output.print(f"{plain(str(command.out))}: {', '.join(_files(command))}", soft_wrap=True)


def compare(command: Command) -> Shown:
    """Measure what is missing, then write the tables and the figure; return all rows, best mean first.

    Raises:
        InputError: unknown suite, method or setting; a folder that cannot be written; no method that runs on the suite;
            published gains of a suite of which none are known.
    """
    specs = parse(command.methods)
    for name in ("threads", "seeds"):
        if getattr(command, name) < 1:
            refuse(name, expected="at least 1", got=getattr(command, name), cure="raise it")
    check_folder(command.out, "output", _files(command), parents=True)
    with stage(f"loading {command.suite}"):
        suite = suites.load(command.suite)
    known = _published(command.published) if command.published else {}
    seeds = range(command.seeds)
    found = _measure_all(specs, seeds, suite, command)
    shown = Shown(ranked(found, seeds, known, per_position=suite.per_position), suite, command.published)
    _write_all(shown, command)
    return shown


def _published(suite: str) -> dict[str, float]:
    known = published.gains(suite)
    if not known:
        expected = " or ".join(name for name in published.NUMBERS if published.gains(name))
        cure = meant(suite, published.NUMBERS, "name one, or leave --published out")
        refuse("published gains of a suite", expected=expected, got=repr(suite), cure=cure)
    return known


def _measure_all(specs: Sequence[Spec], seeds: Sequence[int], suite: Suite, command: Command) -> Found:
    """Return label -> specification and measurements, one per seed where it draws, kept in OUT/results.

    After a seed that could not run, the others of its row are left out.
    """
    folder = check_folder(command.out / "results", "output", parents=True)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [(spec, one, one.key(suite)) for spec in specs for one in spec.seeded(seeds)]
    paths = {key: check_destination(folder / f"{spec.method}-{key}.json") for spec, _, key in runs}
    found: dict[str, tuple[Spec, list[Measurement]]] = {spec.label: (spec, []) for spec in specs}
    for spec, one, key in track(runs, f"merging {suite.name}", lambda run: run[1].label):
        measured = found[spec.label][1]
        if not any(m.reason for m in measured):
            apart = partial(measure_apart, one, command.suite, command.threads, scores=folder)
            measured.append(kept(paths[key], key, one, apart))
    return found


def parse(texts: Sequence[str]) -> list[Spec]:
    """Return the references and the methods that texts like ``all`` or ``ties:density=0.1+svc`` name, each once.

    Raises:
        InputError: unknown method, post-processing or setting, a value out of range, a text that is not NAME=VALUE.
    """
    specs = [_spec(text) for text in (*REFERENCES, *(name for text in texts for name in _named(text)))]
    return list({spec.label: spec for spec in specs}.values())


def _named(text: str) -> list[str]:
    """Return the specifications that a text means: ``all`` is every row, ``all+svc`` every row with what follows."""
    first, plus, after = text.partition("+")
    return [f"{name}{plus}{after}" for name in METHODS] if first == "all" else [text]


def _spec(text: str) -> Spec:
    read = specification(text)
    spec = Spec(read.method, read.given, read.then)
    _ = spec.settings  # refuses what is unknown or out of range before any work
    return spec


def kept(path: Path, key: str, spec: Spec, measure: Callable[[], Measurement]) -> Measurement:
    """Return the measurement that a file keeps, else make it and keep it; what could not run is not kept.

    Args:
        path: the file.
        key: :meth:`Spec.key`, of the method, its settings and the suite.
        spec: the method.
        measure: makes the measurement.
    """
    found = read_kept(path, key)
    if found is None:
        found = measure()
        if not found.reason:
            _write(path, records.to_json(to_plain(Kept(KEPT, key, found))))
    return replace(found, label=spec.label)


@dataclass(frozen=True)
class Kept:
    """The file of one measurement, with the key of the specification and suite that it belongs to."""

    schema: str
    key: str
    measurement: Measurement


def read_kept(path: Path, key: str) -> Measurement | None:
    """Return a kept measurement; one that is damaged, of another version or of another key is made again."""
    try:
        found = from_plain(Kept, records.read_json(path, KEPT, f"result {path}", ""))
        correct = [unpack(text) for text in found.measurement.correct]
    except InputError:
        return None
    whole = found.key == key and len(correct) == len(found.measurement.accuracy)
    return found.measurement if whole else None


def _write_all(shown: Shown, command: Command) -> None:
    texts = {"json": shown.json(), "csv": shown.csv(), "md": shown.markdown()}
    from merging.commands.compare_figure import draw  # matplotlib takes a third of a second to import

    contents = {**texts, **draw(shown.done, shown.suite.name, shown.columns)}
    for name, suffix in zip(_files(command), SUFFIXES, strict=True):
        _write(command.out / name, contents[suffix])


def _write(path: Path, content: str | bytes) -> None:
    data = encoded(content) if isinstance(content, str) else content
    write(path, lambda file: file.write(data))

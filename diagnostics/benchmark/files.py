"""Averaging eight ViT-B/32 from files to an exported file, beside what mergekit and FusionBench take for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors import safe_open

from bounds.types import refuse
from diagnostics.benchmark.measuring import MIB, own_folder, told_as_json
from merging.commands import console, track
from merging.files import check_destination
from merging.models.libraries import library

SUITE = """\
model: {kind: hf_clip, base: base}
cache: none
tasks:
"""
TASK = """\
  - {name: NAME, expert: NAME, classes: [a, b], data: {test: {path: image.npz}}}
"""
WORDS = ("<pad>", "<unk>", "<start>", "<end>", "a", "photo", "of", "b", ".")
FUSION_BENCH = """\
import json, pathlib, sys
from fusion_bench.method import SimpleAverageAlgorithm
from fusion_bench.modelpool import CLIPVisionModelPool

folder = pathlib.Path(sys.argv[1])
pool = CLIPVisionModelPool({name: str(folder / name) for name in sys.argv[3:]})
SimpleAverageAlgorithm().run(pool).save_pretrained(sys.argv[2])
"""
"""What ``fusion_bench method=simple_average`` does, without its configuration files, which name models of a hub."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one way took in processes of its own, imports and all.

    ``peak_bytes`` are the most resident bytes of a process (pages of mapped files that it looked at count),
    ``private_bytes`` the most that belong to no file, sampled; ``off`` is the largest difference of an exported number
    from the experts' mean, taken in float64.
    """

    way: str
    wall: float
    cpu: float
    peak_bytes: int
    private_bytes: int
    exported_bytes: int = 0
    off: float | None = None


def measure(
    tasks: int = 8,
    width: int = 768,
    layers: int = 12,
    folder: Path | None = None,
    threads: int = 1,
    mergekit: Path | None = None,
    fusionbench: Path | None = None,
    json_out: str = "",
) -> None:
    """Average experts of CLIP's image tower (random values, float32) from files to an exported folder.

    Args:
        tasks: number of experts.
        width: of the tower; heads have 64 numbers.
        layers: of the tower.
        folder: where a temporary folder is made, which is removed; by default the system's.
        threads: torch threads of every process.
        mergekit: a Python that has mergekit; its linear method is measured, too.
        fusionbench: a Python that has fusion_bench; its simple average is measured, too.
        json_out: also write the cases as JSON to this file (- for standard output, without the table).
    """
    for what, given, least in (
        ("tasks", tasks, 2),
        ("width", width, 64),
        ("layers", layers, 1),
        ("threads", threads, 1),
    ):
        if given < least:
            refuse(what, expected=f"at least {least}", got=given, cure="raise it")
    for what, python in (("--mergekit", mergekit), ("--fusionbench", fusionbench)):
        if python is not None and not python.is_file():
            refuse(what, expected="a Python that has it", got=f"{python}, where no file is", cure="name another one")
    if json_out not in ("", "-"):
        check_destination(json_out, "--json-out")
    with _made(tasks, width, layers, folder) as place:
        ways = _ways(place, tasks, threads, mergekit, fusionbench)
        cases = [case for way in track(list(ways), "ways") for case in _cases(place, way, ways[way], tasks, threads)]
    if told_as_json(cases, json_out):
        return
    _show(cases, f"{tasks} experts, {layers} layers of width {width}, {threads} threads")


def _names(tasks: int) -> list[str]:
    return [f"expert{index}" for index in range(tasks)]


@contextmanager
def _made(tasks: int, width: int, layers: int, folder: Path | None) -> Iterator[Path]:
    """Write a base with a small text tower, experts as folders of transformers, and a suite with one image a task."""
    transformers = library("transformers")
    vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "patch_size": 32}
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": len(WORDS), "max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 3}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**vision, "num_attention_heads": width // 64}, projection_dim=64
    )
    with own_folder(folder) as path:
        torch.manual_seed(0)
        clip = transformers.CLIPModel(config)
        clip.save_pretrained(path / "base")
        _tokenizer(transformers).save_pretrained(path / "base")
        expert = transformers.CLIPVisionModel(config.vision_config)
        start = {key: value.clone() for key, value in expert.state_dict().items()}
        for task in track(_names(tasks), "experts"):
            for key, value in expert.named_parameters():
                value.data.copy_(torch.randn_like(value).mul_(1e-3).add_(start[key]))
            expert.save_pretrained(path / task)
        _write_suite(path, tasks)
        os.sync()
        yield path


def _tokenizer(transformers: Any) -> Any:
    tokenizers = library("tokenizers")
    words = {word: number for number, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<start>", 2), ("<end>", 3)]
    inner.post_processor = tokenizers.processors.TemplateProcessing("<start> $A <end>", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


def _write_suite(path: Path, tasks: int) -> None:
    numpy = library("numpy")
    numpy.savez(path / "image.npz", images=numpy.zeros((1, 224, 224, 3), "uint8"), labels=numpy.zeros(1, "int64"))
    text = SUITE + "".join(TASK.replace("NAME", name) for name in _names(tasks))
    (path / "suite.yaml").write_text(text, encoding="utf-8")


def _ways(
    place: Path, tasks: int, threads: int, mergekit: Path | None, fusionbench: Path | None
) -> dict[str, dict[str, list[str]]]:
    """Return way -> step -> command; a command's last argument but the experts' names is where it exports to."""
    suite, out = str(place / "suite.yaml"), str(place / "out.pt")
    ours = [sys.executable, "-m", "diagnostics.cli"]
    merge = [
        *ours,
        "merge",
        "--method",
        "average",
        "--suite",
        suite,
        "--out",
        out,
        "--no-table",
        "--threads",
        str(threads),
    ]
    ways = {"mergebound": {"merge": merge, "export": [*ours, "export", out, "--to", str(place / "mergebound")]}}
    if mergekit is not None:
        models = [{"model": str(place / name), "parameters": {"weight": 1.0}} for name in _names(tasks)]
        config = {"merge_method": "linear", "dtype": "float32", "models": models, "parameters": {"normalize": True}}
        (place / "mergekit.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        command = [str(mergekit), "-m", "mergekit.scripts.run_yaml", str(place / "mergekit.yml")]
        ways["mergekit linear"] = {"": [*command, str(place / "mergekit linear"), "--quiet"]}
    if fusionbench is not None:
        way = "FusionBench simple_average"
        ways[way] = {"": [str(fusionbench), "-c", FUSION_BENCH, str(place), str(place / way), *_names(tasks)]}
    return ways


def _cases(place: Path, way: str, steps: Mapping[str, Sequence[str]], tasks: int, threads: int) -> list[Case]:
    """Run the steps of a way; return them and, where they are several, their sum."""
    cases = [_spent(f"{way} {step}".strip(), command, threads) for step, command in steps.items()]
    exported = sorted((place / way).glob("*.safetensors"))
    whole = Case(
        way=way,
        wall=sum(case.wall for case in cases),
        cpu=sum(case.cpu for case in cases),
        peak_bytes=max(case.peak_bytes for case in cases),
        private_bytes=max(case.private_bytes for case in cases),
        exported_bytes=sum(file.stat().st_size for file in exported),
        off=_off(place, exported, tasks),
    )
    return [*(cases if len(cases) > 1 else []), whole]


def _spent(way: str, command: Sequence[str], threads: int) -> Case:
    """Run a command; sample its memory every 5 ms.

    Raises:
        InputError: it failed; its last line is told.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, text=True)
        peaks, done = {"VmHWM": 0, "RssAnon": 0}, threading.Event()
        watch = threading.Thread(target=_watch, args=(process.pid, peaks, done), daemon=True)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        done.set()
        watch.join()
        if process.returncode:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["nothing said"])[-1][:200]
            refuse(way, expected="status 0", got=f"{process.returncode}: {last}", cure="try its command by hand")
    cpu = usage.ru_utime + usage.ru_stime
    return Case(way=way, wall=wall, cpu=cpu, peak_bytes=peaks["VmHWM"], private_bytes=peaks["RssAnon"])


def _watch(process: int, peaks: dict[str, int], done: threading.Event) -> None:
    """Keep the largest of what Linux says of a process's memory until it is done."""
    while not done.wait(0.005):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:  # it has ended
            return
        for line in lines:
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], 1024 * int(value.split()[0]))


def _off(place: Path, exported: Sequence[Path], tasks: int) -> float:
    """Return the largest difference of an exported number from the experts' mean.

    Raises:
        InputError: tensors of the experts are not there.
    """
    handles: Any = [safe_open(place / name / "model.safetensors", "pt") for name in _names(tasks)]
    written: Any = [safe_open(file, "pt") for file in exported]
    where = {name.split("vision_model.")[-1]: (file, name) for file in written for name in list(file.keys())}
    off = 0.0
    for name in list(handles[0].keys()):
        short = name.split("vision_model.")[-1]
        if short not in where:
            refuse(f"export {place.name}", expected=f"tensor {short}", got="none", cure="look at what it wrote")
        mean = sum(handle.get_tensor(name).double() for handle in handles) / tasks
        file, found = where[short]
        off = max(off, float((file.get_tensor(found).double() - mean).abs().max()))
    return off


def _show(cases: Sequence[Case], title: str) -> None:
    """Print what each way took, and wall time and peak as multiples of ours."""
    ours = next(case for case in cases if case.way == "mergebound")
    table = Table(title=f"average from files to an exported folder: {title}")
    table.add_column("way")
    for column in ("wall (s)", "CPU (s)", "peak (MiB)", "private (MiB)", "× wall", "× peak", "written (MB)", "off by"):
        table.add_column(column, justify="right")
    for case in cases:
        figures = [f"{case.wall:.1f}", f"{case.cpu:.1f}", f"{case.peak_bytes / MIB:.0f}"]
        figures += [f"{case.private_bytes / MIB:.0f}", f"{case.wall / ours.wall:.2f}"]
        figures += [f"{case.peak_bytes / ours.peak_bytes:.2f}"]
        end = ["", ""] if case.off is None else [f"{case.exported_bytes / 1e6:.0f}", f"{case.off:.1e}"]
        table.add_row(case.way, *figures, *end)
    console().print(table)

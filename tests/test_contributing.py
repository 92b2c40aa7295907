"""The recipes of docs/contributing.md, followed to the letter in a copy of the package."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from merging import merge
from merging.artifact import save
from merging.suites import toy

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")


def blocks(text):
    """File -> (language, content) of every code block that is headed by a file's name."""
    found = re.findall(r"^`([\w/.]+)`:\n\n```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return {file: (language, content) for file, language, content in found}


def apply(path, difference):
    """Add the lines marked + after the line before them."""
    text, lines = path.read_text(encoding="utf-8"), difference.splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("+"):
            old = before[1:] + "\n"
            assert text.count(old) == 1, old
            text = text.replace(old, old + line[1:] + "\n")
    path.write_text(text, encoding="utf-8")


def recipe(title):
    """The text of a recipe, and the files that its numbered steps name."""
    text = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    return text, re.findall(r"^\d+\. (?:Write |Add it to )?`([\w/.]+)`", text, flags=re.MULTILINE)


def run_in(folder, *command):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def with_files(folder, package, files):
    """Copy a package into a folder and add the recipe's files."""
    shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, (_, content) in files.items():
        assert not (folder / file).exists()
        (folder / file).write_text(content, encoding="utf-8")


def test_a_method_is_one_file_and_obeys_the_laws(tmp_path):
    text, steps = recipe("Add a method")
    assert list(blocks(text)) == steps
    assert len(steps) == 1
    with_files(tmp_path, "merging", blocks(text))
    laws = "from tests.laws import LAWS\nfor law in LAWS.values(): law('median')\nprint(len(LAWS))"
    done = run_in(tmp_path, "-c", laws)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8
    assert "median" in run_in(tmp_path, "-m", "merging", "list").stdout
    done = run_in(tmp_path, "-m", "merging", "--method", "median", "--suite", "toy", "--out", "out.pt")
    assert done.returncode == 0, done.stderr


def test_a_suite_is_one_file(tmp_path):
    text, steps = recipe("Add a suite")
    assert list(blocks(text)) == steps
    assert len(steps) == 1
    with_files(tmp_path, "merging", blocks(text))
    done = run_in(tmp_path, "-m", "merging", "--suite", "lines", "--method", "average", "--out", "out.pt")
    assert done.returncode == 0, done.stderr
    assert "average on lines" in done.stdout
    done = run_in(tmp_path, "-m", "diagnostics.bound_report", "--merged", "out.pt", "--sections", "accuracy")
    assert done.returncode == 0, done.stderr


def test_a_model_kind_is_one_file(tmp_path):
    text, steps = recipe("Add a model kind")
    assert list(blocks(text)) == steps
    assert len(steps) == 1
    with_files(tmp_path, "merging", blocks(text))
    code = """
import numpy as np, torch
from safetensors.torch import save_file
from merging.models.pooled_text import Options, PooledText
generator = np.random.default_rng(0)
for name in ("base", "one", "two"):
    save_file(PooledText(Options(tokens=9)).state_dict(), f"{name}.safetensors")
np.savez("data.npz", x=generator.integers(0, 9, (60, 5)), y=generator.integers(0, 2, 60), class_names=["no", "yes"])
"""
    done = run_in(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    tasks = "".join(f"  - {{name: {name}, expert: {name}.safetensors, data: data.npz}}\n" for name in ("one", "two"))
    head = "model: {kind: pooled_text, base: base.safetensors, tokens: 9}\ncache: none\n"
    splits = "splits: {calibration: 0.3, test: 0.5}\nseed: 0\nshared_examples: name\ntasks:\n"
    (tmp_path / "mine.yaml").write_text(head + splits + tasks, encoding="utf-8")
    done = run_in(tmp_path, "-m", "merging", "--suite", "mine.yaml", "--method", "average", "--out", "out.pt")
    assert done.returncode == 0, done.stderr
    assert "average on mine" in done.stdout
    done = run_in(tmp_path, "-m", "diagnostics.export", "out.pt", "--to", "merged")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "README.md").is_file()


def test_the_places_of_a_term_exist_and_are_five():
    text, steps = recipe("Add a term of bound (5)")
    assert len(steps) == 5
    for file in steps:
        assert (ROOT / file).is_file(), file
    for file in re.findall(r"`([\w/]+\.py)`", text):
        assert (ROOT / file).is_file(), file


def test_a_section_is_added_in_three_places_and_shown_everywhere(tmp_path):
    recipe = TEXT.split("## Add a report section")[1].split("\n## ")[0]
    steps = re.findall(r"^\d+\. .*`(diagnostics/[\w/.]+)`", recipe, flags=re.MULTILINE)
    files = blocks(recipe)
    assert list(files) == steps
    assert len(steps) == 3
    shutil.copytree(ROOT / "diagnostics", tmp_path / "diagnostics", ignore=shutil.ignore_patterns("__pycache__"))
    for file, (language, content) in files.items():
        if language == "diff":
            apply(tmp_path / file, content)
        else:
            (tmp_path / file).write_text(content, encoding="utf-8")
    suite = toy.build()
    vectors = suite.task_vectors
    save(merge("average", vectors, suite.tasks, suite="toy", sources=suite.sources), tmp_path / "a.pt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = ["-m", "diagnostics.bound_report", "--merged", "a.pt", "--sections", "norms", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["merges"][0]["norms"]
    assert len(numbers["experts"]) == 3
    shown = f"‖θ_m − θ_0‖ = {numbers['merge']:.3f}"
    assert shown in " ".join(done.stdout.split())
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert '<h2 id="norms">Norms</h2>' in page
    assert '<a href="#norms">norms</a>' in page
    assert f"‖θ<sub>m</sub> − θ<sub>0</sub>‖ = {numbers['merge']:.3f}" in page

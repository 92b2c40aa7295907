"""The shape of the project: imports point one way, public functions are documented, the public names exist."""

import ast
import importlib
from pathlib import Path

import pytest

from diagnostics.work.identity import imports
from tests.circles import circle

ROOT = Path(__file__).resolve().parent.parent
RANK = {"bounds": 0, "merging": 1, "diagnostics": 2}
FILES = [path for package in RANK for path in (ROOT / package).rglob("*.py")]
GROUND = ("bounds.types", "bounds.autodiff", "bounds.validation", "bounds.jacobian", "bounds.scores")
"""What merging may use of bounds."""
PUBLIC = {
    "bounds.ntk": ["trace", "gram", "quadratic_form", "spectrum", "drift"],
    "bounds.linearize": ["linearize", "transfer_error", "residual"],
    "bounds.flatness": ["gradient_second_moment", "gradient_norm", "sharpness"],
    "bounds.heterogeneity": ["cross_risk", "heterogeneity"],
    "bounds.distillation": ["total_variation", "kl", "ladder"],
    "bounds.pac_bayes": ["gaussian_kl", "kl_inverse", "flatness_bound", "maurer_bound"],
    "bounds.theorems": ["theorem1", "theorem2", "theorem3"],
    "bounds.certificates": ["held_out", "coefficient_pac_bayes", "disagreement"],
    "merging": ["merge", "merged", "TaskVectors", "Task"],
    "merging.artifact": ["save", "load", "MergeArtifact"],
    "merging.suites": ["load"],
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_from_diagnostics_to_merging_to_bounds(path):
    own = path.relative_to(ROOT).parts[0]
    for module in imported(path):
        top = module.split(".")[0]
        assert RANK.get(top, -1) <= RANK[own], f"{path} imports {module}"
        if own == "merging" and top == "bounds":
            assert module in GROUND, f"{path} imports {module}"
        if own == "bounds":
            assert top not in ("matplotlib", "rich", "open_clip", "tyro", "jinja2"), f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_and_classes_are_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist(module):
    names = vars(importlib.import_module(module))
    assert not [name for name in PUBLIC[module] if name not in names]


MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


def test_no_module_of_the_whole_tree_imports_itself_through_others():
    """Imports inside functions and for types count, too; a face counts as the modules it takes its names from."""
    graph = {name: imports(name) for name in MODULES}
    assert len(graph) > 100
    assert "bounds.theorems.terms" in graph["bounds.theorems.single_model"]
    assert circle(graph) is None


def faces():
    """Packages that modules outside them import names from (and not only modules)."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module not in MODULES or name.startswith(f"{node.module}."):
                continue
            names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in MODULES}
            if names and MODULES[node.module].name == "__init__.py":
                yield node.module, names


def test_a_face_says_what_outsiders_use():
    found = list(faces())
    assert len({face for face, _ in found}) > 10
    for face, names in found:
        assert names <= set(importlib.import_module(face).__all__), face


SPANNING = {
    "tests/bounds/test_properties.py": "properties of several statements, by hypothesis",
    "tests/bounds/theorems/test_theorem_equalities.py": "several theorems on worlds where they are equalities",
    "tests/bounds/theorems/test_bound_terms.py": "bounds.theorems.terms; pytest wants distinct names",
    "tests/diagnostics/test_masks.py": "attention masks in whatever differentiates, up to the sections of a report",
    "tests/merging/test_laws.py": "every row of the table of methods",
}
"""Tests that do not mirror one file, and why."""


MIRRORS = [p.relative_to(ROOT) for package in RANK for p in (ROOT / "tests" / package).rglob("test_*.py")]


@pytest.mark.parametrize("path", MIRRORS, ids=str)
def test_tests_mirror_files(path):
    """tests/A/B/test_C.py tests A/B/C.py, or the house A/B/C."""
    mirrored = Path(*path.parts[1:-1]) / path.stem.removeprefix("test_")
    exists = (ROOT / mirrored).is_dir() or (ROOT / mirrored.with_suffix(".py")).is_file()
    assert exists or str(path) in SPANNING, f"{path} mirrors neither {mirrored}.py nor {mirrored}/"


def test_a_circle_is_found():
    assert circle({"a": ("b",), "b": ("c",), "c": ("b",)}) == ["b", "c", "b"]
    assert circle({"a": ("b", "c"), "b": ("c",), "c": ()}) is None

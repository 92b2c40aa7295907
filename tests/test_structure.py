"""The shape of the project: imports point one way, public functions are documented, the public names exist."""

import ast
import importlib
from pathlib import Path

import pytest

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

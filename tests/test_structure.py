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
BY_PLACE = {"Task": "name, forward and classes, then the splits", "Suite": "name, task vectors and tasks"}
"""Data classes whose first fields may be given without their names; the others come after a ``KW_ONLY``."""
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


def by_place(tree):
    """Names of the data classes of more than four fields that can be filled without naming every field."""
    for node in ast.walk(tree):
        made = [ast.unparse(d) for d in getattr(node, "decorator_list", ()) if "dataclass" in ast.unparse(d)]
        if not isinstance(node, ast.ClassDef) or not made or "kw_only=True" in made[0]:
            continue
        kinds = [ast.unparse(b.annotation) for b in node.body if isinstance(b, ast.AnnAssign)]
        fields = [kind for kind in kinds if not kind.startswith("ClassVar")]
        if len(fields) - ("KW_ONLY" in fields) > 4 and not (node.name in BY_PLACE and "KW_ONLY" in fields[:4]):
            yield node.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_data_classes_of_more_than_four_fields_take_them_by_name(path):
    assert not list(by_place(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("decorator", "found"),
    [("@dataclass", True), ("@dataclass(frozen=True)", True), ("@dataclass(kw_only=True)", False), ("", False)],
)
def test_a_long_data_class_without_names_is_found(decorator, found):
    fields = "\n".join(f"    f{i}: int" for i in range(5))
    for name in ("Long", "Task"):
        source = f"{decorator}\nclass {name}:\n{fields}\n"
        assert list(by_place(ast.parse(source))) == [name] * found
    marked = fields.replace("    f3", "    _: KW_ONLY\n    f3")
    assert list(by_place(ast.parse(f"@dataclass\nclass Task:\n{marked}\n"))) == []
    assert list(by_place(ast.parse(f"@dataclass\nclass Long:\n{marked}\n"))) == ["Long"]
    short = "\n".join(["    shared: ClassVar[int] = 1", *fields.splitlines()[:4]])
    assert list(by_place(ast.parse(f"{decorator}\nclass Long:\n{short}\n"))) == []

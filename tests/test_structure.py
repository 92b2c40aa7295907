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
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
"""Name of a module or package -> its file."""
_GROUND = ("types", "autodiff", "validation", "jacobian", "scores", "coarse", "running_statistics")
GROUND = tuple(f"bounds.{name}" for name in _GROUND)
"""What merging may use of bounds."""
BY_PLACE = {"Suite": "name, task vectors and tasks"}
"""Data classes whose first fields may be given without their names; the others come after a ``KW_ONLY``."""
ALL_BY_PLACE = {"Task": "users' code has always given it in the order name, forward, classes, the four splits"}
"""Data classes that stay as users call them."""
PUBLIC = {
    "bounds.ntk": ["trace", "gram", "quadratic_form", "spectrum", "drift"],
    "bounds.linearize": ["linearize", "transfer_error", "residual"],
    "bounds.flatness": ["gradient_second_moment", "gradient_norm", "sharpness"],
    "bounds.heterogeneity": ["cross_risk", "heterogeneity"],
    "bounds.distillation": ["total_variation", "kl", "ladder"],
    "bounds.pac_bayes": ["gaussian_kl", "kl_inverse", "flatness_bound", "maurer_bound"],
    "bounds.theorems": ["theorem1", "theorem2", "theorem3"],
    "bounds.certificates": ["held_out", "coefficient_pac_bayes", "disagreement"],
    "merging": ["merge", "merged", "SequenceTask", "TaskVectors", "Task"],
    "merging.sequences": ["SequenceTask", "generate", "exact_match", "perplexity", "bits_per_byte"],
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


def test_no_module_of_the_whole_tree_imports_itself_through_others():
    """Imports inside functions and for types count, too; a face counts as the modules it takes its names from."""
    graph = {name: imports(name) for name in MODULES}
    assert len(graph) > 100
    assert "bounds.theorems.terms" in graph["bounds.theorems.single_model"]
    assert circle(graph) is None


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


def by_place(tree):
    """Names of the data classes of more than four fields that can be filled without naming every field."""
    for node in ast.walk(tree):
        made = [ast.unparse(d) for d in getattr(node, "decorator_list", ()) if "dataclass" in ast.unparse(d)]
        if not isinstance(node, ast.ClassDef) or not made or "kw_only=True" in made[0]:
            continue
        if node.name in ALL_BY_PLACE:
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
    for name in ("Long", "Suite"):
        source = f"{decorator}\nclass {name}:\n{fields}\n"
        assert list(by_place(ast.parse(source))) == [name] * found
    marked = fields.replace("    f3", "    _: KW_ONLY\n    f3")
    assert list(by_place(ast.parse(f"@dataclass\nclass Suite:\n{marked}\n"))) == []
    assert list(by_place(ast.parse(f"@dataclass\nclass Long:\n{marked}\n"))) == ["Long"]
    short = "\n".join(["    shared: ClassVar[int] = 1", *fields.splitlines()[:4]])
    assert list(by_place(ast.parse(f"{decorator}\nclass Long:\n{short}\n"))) == []


def made_in(tree):
    """Names that a module makes itself at its top level, and those its ``__all__`` lists."""
    made, listed = set(), []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
            continue
        made |= {leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = ast.literal_eval(node.value)
    return made, listed


MADE = {name: made_in(TREES[path]) for name, path in MODULES.items()}
OLD_NAMES = ("diagnostics.cache", "merging.evaluation")
"""Modules that only pass on the names of what has moved, for one minor version; nothing of the project uses them."""
HOUSES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


def names_used(tree):
    """(module, name) of every name of the project that a module asks another one for, also as ``module.name``."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in MODULES:
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    yield node.module, alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield aliases[node.value.id], node.attr


def inside(module, house):
    return module == house or module.startswith(f"{house}.")


def wrong_doors(own, tree):
    """What the module ``own`` asks of a module that only imported it, or of the wrong side of a package's face.

    A package's ``__init__`` is its face: it alone passes names on, and ``__all__`` lists them. From outside a name
    comes through the face that lists it, inside from the module that makes it. Beside the faces of the two libraries
    themselves, which are for their users, their modules stay open.
    """
    for module, name in names_used(tree):
        made, listed = MADE[module]
        if module not in HOUSES:
            if name not in made:
                yield f"{module} does not make {name}"
        elif inside(own, module):
            if name not in made:
                yield f"{name} through the face of its own package {module}"
        elif name not in listed:
            yield f"{module} has no {name} in __all__"
        for face in HOUSES:
            past = "." in face and module != face and inside(module, face) and not inside(own, face)
            if past and name in made and name in MADE[face][1]:
                yield f"{module}.{name} past the face {face}"


@pytest.mark.parametrize("module", MODULES)
def test_names_come_from_where_they_are_made_or_through_a_face(module):
    tree = TREES[MODULES[module]]
    if module in OLD_NAMES:
        return
    assert module in HOUSES or "__all__" not in MADE[module][0], "only a package's __init__ passes names on"
    assert not list(wrong_doors(module, tree))


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ("merging.plain", "from bounds.pac_bayes.lemma import kl_inverse"),
        ("merging.plain", "from bounds.pac_bayes import lemma\nlemma.kl_inverse"),
        ("merging.plain", "from bounds.pac_bayes.divergences import kl_inverse"),
        ("merging.plain", "from bounds.pac_bayes import checked_grid"),
        ("merging.plain", "from diagnostics.figures import INK"),
        ("bounds.pac_bayes.lemma", "from bounds.pac_bayes import kl_inverse"),
    ],
)
def test_a_name_through_the_wrong_door_is_found(own, line):
    assert len(list(wrong_doors(own, ast.parse(line)))) == 1


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ("merging.plain", "from bounds.pac_bayes import kl_inverse, posterior\nposterior.checked_grid"),
        ("merging.plain", "from bounds.pac_bayes.posterior import checked_grid"),
        ("bounds.pac_bayes.lemma", "from bounds.pac_bayes.divergences import kl_inverse"),
        ("diagnostics.report", "from merging.task import Task\nfrom numpy import array"),
    ],
)
def test_the_right_doors_are_open(own, line):
    assert list(wrong_doors(own, ast.parse(line))) == []

"""Notebooks run, without a warning; what is kept of them is what they say; links between theory and notebooks hold.

Every check is a function that returns complaints, so that the tests can also show that a wrong notebook gets one.
"""

import ast
import importlib
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from notebooks import execute

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = execute.scripts()
THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
PACKAGES = ("bounds", "merging", "diagnostics")
LIBRARIES = ("numpy", "scipy", "torch", "matplotlib", "IPython")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
NOISE = re.compile(
    r"(?<!\w)/(?:home|root|tmp|usr|work|Users|private|var|opt)/|[A-Z]:\\|0x[0-9a-f]{6,}|<ipython-input|\d (?:ms|s)\b"
)
every_notebook = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def kept(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell prints or says, without its figures."""
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            yield output.text
        elif not any(kind.startswith("image/") for kind in data):
            yield data.get("text/markdown", data.get("text/plain", ""))


def has_figure(cell):
    return any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {}))


# What is kept.


def out_of_step(script_cells, kept_cells):
    """Cells of the script that the .ipynb does not have at that place, or the other way round."""
    pairs = [[(cell.cell_type, cell.source) for cell in cells] for cells in (script_cells, kept_cells)]
    wrong = [index for index, (ours, theirs) in enumerate(zip(*pairs, strict=False)) if ours != theirs]
    return wrong + ([min(map(len, pairs))] if len(pairs[0]) != len(pairs[1]) else [])


def same_text(now, then):
    """Whether two outputs agree: words exactly, numbers to 5 % or two units in the last place shown."""
    if NUMBER.sub("#", now) != NUMBER.sub("#", then):
        return False
    for new, old in zip(NUMBER.findall(now), NUMBER.findall(then), strict=True):
        unit = 10.0 ** -len(old.partition(".")[2].partition("e")[0])
        if "e" not in old and abs(float(new) - float(old)) > max(0.05 * float(old), 2.000001 * unit):
            return False
    return True


def output_complaints(notebook):
    """Errors, missing figures or captions, and anything that would differ on another machine or day."""
    complaints, figures = [], 0
    for index, cell in enumerate(code(notebook), start=1):
        said = "".join(texts(cell))
        if cell.execution_count != index or cell.metadata or any("stderr" in o.get("name", "") for o in cell.outputs):
            complaints.append(f"cell {index}: not run in order, with metadata, or with warnings")
        if any(output.output_type == "error" for output in cell.outputs):
            complaints.append(f"cell {index}: an error")
        if re.search(r"plt\.(?!style)", cell.source):
            figures += 1
            if not has_figure(cell) or f"**Figure {figures}.**" not in said:
                complaints.append(f"cell {index}: no figure, or no caption 'Figure {figures}'")
        if found := NOISE.search(said):
            complaints.append(f"cell {index}: {found[0]!r}")
    return complaints if figures else [*complaints, "no figure at all"]


@every_notebook
def test_the_script_and_its_ipynb_have_the_same_cells(script):
    assert not out_of_step(execute.read(script).cells, kept(script).cells), "run `make notebooks`"


@every_notebook
def test_outputs_are_kept_and_free_of_noise(script):
    assert not output_complaints(kept(script))
    assert script.with_suffix(".ipynb").stat().st_size < 600_000


@every_notebook
def test_runs_without_a_warning_and_says_what_is_kept(script):
    """Assertions in the notebook, any warning, or more than 90 s fail it."""
    notebook = execute.execute(script)
    assert not output_complaints(notebook)
    for now, then in zip(code(notebook), code(kept(script)), strict=True):
        assert has_figure(now) == has_figure(then)
        pairs = zip(texts(now), texts(then), strict=True)
        different = [(new, old) for new, old in pairs if not same_text(new, old)]
        assert not different, "run `make notebooks`"


def test_a_wrong_notebook_is_complained_about():
    script = SCRIPTS[0]
    good, changed = kept(script), kept(script)
    changed.cells[3].source += " "
    assert out_of_step(good.cells, changed.cells) == [3]
    assert out_of_step(good.cells, good.cells[:-1]) == [len(good.cells) - 1]
    drawing = next(cell for cell in code(changed) if has_figure(cell))
    drawing.outputs = [o for o in drawing.outputs if "image/png" not in o.get("data", {})]
    assert output_complaints(good) == []
    assert len(output_complaints(changed)) == 1
    for text in ("in /home/me/x", "<Object at 0x7f31aa>", "took 3.1 s"):
        code(good)[0].outputs = [nbformat.v4.new_output("stream", text=text)]
        assert len(output_complaints(good)) == 1
    assert same_text("a 0.50 b 3", "a 0.49 b 3")
    for now, then in (("a 0.5", "b 0.5"), ("0.60", "0.50"), ("1 2", "1"), ("7", "3")):
        assert not same_text(now, then)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("assert 1 + 1 == 3", CellExecutionError),
        ("import warnings\nwarnings.warn('careful')", CellExecutionError),
        ("import time\ntime.sleep(60)", TimeoutError),
    ],
)
def test_a_failing_noisy_or_slow_notebook_fails(tmp_path, source, error):
    script = tmp_path / "99_bad.py"
    script.write_text(f"# %%\n{source}\n", encoding="utf-8")
    with pytest.raises(error):
        execute.execute(script, 4.0)


# What it is made of.


def private_names(tree):
    """Names that a notebook may not use: underscored, foreign to the module they are taken from, or undeclared."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_\w+__$)", node.attr):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if not allowed_module(alias.name))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."
            if node.level or not allowed_module(module):
                yield module
            elif module.split(".")[0] in PACKAGES:
                yield from (f"{module}.{a.name}" for a in node.names if not is_public(module, a.name))


def allowed_module(module):
    top = module.split(".")[0]
    return top in (*PACKAGES, *LIBRARIES, *sys.stdlib_module_names) and not re.search(r"(^|\.)_", module)


def is_public(module, name):
    """In ``__all__``, a module of the package, or defined in the module itself; and without an underscore."""
    if name.startswith("_") or name == "*":
        return False
    loaded = importlib.import_module(module)
    if name in getattr(loaded, "__all__", ()):
        return True
    here = Path(str(loaded.__file__))
    if here.name == "__init__.py" and any((here.parent / f"{name}{end}").exists() for end in ("", ".py")):
        return True
    return name in names_defined_in(here)


def names_defined_in(path):
    """Functions, classes and constants at the top level of a module."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name))


@every_notebook
def test_only_public_names_are_used(script):
    assert not list(private_names(ast.parse(script.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "line",
    [
        "from bounds.pac_bayes import _complexity",
        "from bounds.pac_bayes import *",
        "from bounds.theorems.single_model import dataclass",
        "from tests import oracles",
        "import sklearn",
        "import bounds._hidden",
        "x = y._cache",
    ],
)
def test_private_names_are_found(line):
    assert len(list(private_names(ast.parse(line)))) == 1


@every_notebook
def test_says_claim_proof_and_wrong_version_and_ends_in_assertions(script):
    cells = execute.read(script).cells
    opening = cells[0].source
    assert opening.startswith("# ")
    assert "**Claim.**" in opening
    assert re.search(r"\*\*Proof idea\.\*\*\n1\. .*\n2\. .*\n3\. ", opening, flags=re.DOTALL)
    assert re.search(r"\\tag\{\d", opening), "no equation number"
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "## Numbers to change" in prose
    assert re.search("the wrong version", prose, flags=re.IGNORECASE)
    assert cells[-1].cell_type == "code"
    assert cells[-1].source.count("assert ") >= 3


# Links.


def headings(notebook):
    """Anchors of a notebook's headings: the text, spaces as hyphens."""
    lines = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").splitlines()
    return {re.sub(r"^#+ ", "", line).strip().replace(" ", "-") for line in lines if re.match(r"#+ ", line)}


def slugs(markdown):
    """Anchors of a Markdown page's headings as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def link_complaints(markdown):
    """Links from docs/ to notebooks and tests that lead nowhere, and names of tests that do not exist."""
    for text, target, anchor in re.findall(r"\[([^]]+)\]\(\.\./((?:notebooks|tests)/[^)#]+)#?([^)]*)\)", markdown):
        path = ROOT / target
        if not path.is_file():
            yield target
        elif path.suffix == ".ipynb":
            if anchor not in headings(nbformat.read(path, as_version=4)):
                yield f"{target}#{anchor}"
        elif path.suffix == ".py" and text.strip("`") not in names_defined_in(path):
            yield f"{target}: {text}"
    for row in re.findall(r"^\|.*\|(.*)\|$", markdown, flags=re.MULTILINE):
        for file, names in re.findall(r"([\w/]+): ((?:`test_\w+`(?:, )?)+)", row):
            folder, _, name = file.rpartition("/")
            path = ROOT / "tests" / "bounds" / folder / f"test_{name}.py"
            known = set(names_defined_in(path)) if path.is_file() else set()
            yield from (f"{file}: {name}" for name in re.findall(r"`(\w+)`", names) if name not in known)


def test_links_of_the_theory_lead_somewhere():
    assert not list(link_complaints(THEORY))


@pytest.mark.parametrize(
    "wrong",
    [
        "[01](../notebooks/01_lemma1_flatness_pac_bayes.ipynb#Nowhere)",
        "[99](../notebooks/99_missing.ipynb#Coverage)",
        "[`test_of_nothing`](../tests/bounds/test_pac_bayes.py)",
        "| (2) | `f` | pac_bayes/lemma: `test_lemma1_by_hand`, `test_of_nothing` |",
    ],
)
def test_wrong_links_are_found(wrong):
    assert len(list(link_complaints(wrong))) == 1


@every_notebook
def test_the_theory_and_the_overview_lead_to_it_and_it_leads_back(script):
    name = script.with_suffix(".ipynb").name
    assert f"(../notebooks/{name}#" in THEORY
    assert f"]({name})" in (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    anchors = re.findall(r"\]\(\.\./docs/theory\.md#([^)]+)\)", script.read_text(encoding="utf-8"))
    assert anchors
    assert set(anchors) <= slugs(THEORY)

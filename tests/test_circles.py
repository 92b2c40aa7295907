"""No module of diagnostics imports itself through others: imports inside functions and for types count, too."""

from pathlib import Path

from diagnostics.work.identity import imports

ROOT = Path(__file__).resolve().parent.parent


def circle(graph):
    """Return the first circle of a graph of imports, or None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        found = next((c for other in graph.get(name, ()) if (c := visit(other))), None)
        path.pop()
        done.add(name)
        return found

    return next((c for name in graph if (c := visit(name))), None)


def test_no_module_of_diagnostics_imports_itself_through_others():
    names = [str(p.relative_to(ROOT).with_suffix("")).replace("/", ".") for p in (ROOT / "diagnostics").rglob("*.py")]
    graph = {name: imports(name) for name in (n.removesuffix(".__init__") for n in names)}
    assert len(graph) > 30
    assert graph["diagnostics.page"]
    assert circle(graph) is None


def test_a_circle_is_found():
    assert circle({"a": ("b",), "b": ("c",), "c": ("b",)}) == ["b", "c", "b"]
    assert circle({"a": ("b", "c"), "b": ("c",), "c": ()}) is None

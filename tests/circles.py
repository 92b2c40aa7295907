"""Circles in graphs of imports."""


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

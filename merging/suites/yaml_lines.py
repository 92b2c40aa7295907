"""YAML that remembers its lines, so that an error can name the one to mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bounds.types import refuse

Place = tuple[str | int, ...]
_CONTAINERS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
LARGEST = 2**22
"""Bytes of a suite file: it names data, it does not hold them."""


@dataclass(frozen=True)
class Document:
    """What a file says, and on which line every part of it begins."""

    path: Path
    value: Any
    lines: Mapping[Place, int]

    def where(self, steps: Sequence[str | int] = ()) -> str:
        """Name a place as errors do: file, line, and the names that lead there; of what is absent, its surroundings."""
        known = tuple(steps)
        while known not in self.lines:
            known = known[:-1]
        name = ".".join(map(str, steps))
        return f"{self.path}, line {self.lines[known]}" + (f", {name}" if name else "")


def read_yaml(path: Path) -> Document:
    """Read a YAML mapping: plain values only, no anchors, no name twice.

    Raises:
        InputError: a missing file, text that is no YAML, a name twice, an alias (it could stand for a billion values).
    """
    cure = "mend it, or write a new one with mergebound suite init"
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        refuse(
            f"suite file {path}", expected="a file", got=got, cure="name one, or write one with mergebound suite init"
        )
    if path.stat().st_size > LARGEST:
        refuse(f"suite file {path}", expected="a small text", got=f"{path.stat().st_size} bytes", cure="name the .yaml")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        refuse(f"{path}, line {line}", expected="YAML", got=error.problem or "something else", cure=cure)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        refuse(f"suite file {path}", expected="YAML, a text in UTF-8", got=str(error).splitlines()[0], cure=cure)
    if not isinstance(node, yaml.MappingNode):
        refuse(f"suite file {path}", expected="names with values, such as model: …", got="none", cure=cure)
    lines: dict[Place, int] = {}
    return Document(path, _plain(node, (), lines, set(), path, loader), lines)


def _plain(node: Any, place: Place, lines: dict[Place, int], seen: set[int], path: Path, loader: Any) -> Any:
    """Return a node as plain values and note the lines of its parts."""
    lines[place] = node.start_mark.line + 1
    if id(node) in seen or len(place) > 20:
        got = "an alias (*name), or values nested too deep"
        refuse(f"{path}, line {lines[place]}", expected="every value written out", got=got, cure="write it out")
    seen.add(id(node))
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _CONTAINERS:
        got, cure = f"the tag {node.tag[:60]!r}", "write lists and names with values alone"
        refuse(f"{path}, line {lines[place]}", expected="a plain value", got=got, cure=cure)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(part, (*place, i), lines, seen, path, loader) for i, part in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, path, loader)
    result: dict[str, Any] = {}
    for key, value in node.value:
        name, line = key.value, key.start_mark.line + 1
        if not isinstance(name, str) or name in result:
            got = f"{name!r} twice" if isinstance(name, str) else "a list as a name"
            refuse(f"{path}, line {line}", expected="each name once", got=got, cure="remove one of them")
        result[name] = _plain(value, (*place, name), lines, seen, path, loader)
        lines[(*place, name)] = line
    return result


def _scalar(node: Any, path: Path, loader: Any) -> Any:
    try:
        value = loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:
        got, cure = str(error).splitlines()[0], "write a text, a number, true, false or null"
        refuse(f"{path}, line {node.start_mark.line + 1}", expected="a plain value", got=got, cure=cure)
    return value if value is None or isinstance(value, (bool, int, float, str)) else node.value  # a date stays text

"""The reader of suite files: lines, and what it refuses."""

import pytest

from bounds.types import InputError
from merging.suites.yaml_lines import read_yaml


def test_lines_of_every_part(tmp_path):
    path = tmp_path / "a.yaml"
    lines = ["name: x", "", "model:", "  kind: torch", "  base: b", "tasks:", "  - name: one", "    classes: [a,"]
    path.write_text("\n".join([*lines, "      b]", "  - {name: two}"]))
    read = read_yaml(path)
    assert read.value == {
        "name": "x",
        "model": {"kind": "torch", "base": "b"},
        "tasks": [{"name": "one", "classes": ["a", "b"]}, {"name": "two"}],
    }
    for steps, line in {
        ("name",): 1,
        ("model", "base"): 5,
        ("tasks", 0, "classes"): 8,
        ("tasks", 0, "classes", 1): 9,
        ("tasks", 1, "name"): 10,
        ("tasks", 1, "expert"): 10,
        ("model", "absent", "deep"): 3,
    }.items():
        assert read.where(steps) == f"{path}, line {line}, {'.'.join(map(str, steps))}"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: 1\nb: [1, 2\n", r"line 3: expected YAML"),
        ("a: 1\na: 2\n", r"line 2: expected each name once; got 'a' twice"),
        ("a: &x [1]\nb: *x\n", r"line 1: expected every value written out; got an alias"),
        ("- 1\n", "expected names with values"),
        ("", "expected names with values"),
        ("a: !!python/object/apply:os.system [x]\n", "expected a plain value|expected YAML"),
        ("a: !!python/name:os.system\n", "line 1: expected a plain value"),
        ("a: \x00\n", "expected YAML"),
        ("\ta: 1\n", "line 1: expected YAML"),
        ("a: " + "[" * 3000 + "]" * 3000, "expected"),
    ],
)
def test_what_is_refused(tmp_path, text, match):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=match):
        read_yaml(path)


def test_places_that_hold_no_text(tmp_path):
    with pytest.raises(InputError, match="got nothing there"):
        read_yaml(tmp_path / "no.yaml")
    with pytest.raises(InputError, match="got a folder"):
        read_yaml(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(InputError, match="a text in UTF-8"):
        read_yaml(tmp_path / "b.yaml")
    (tmp_path / "big.yaml").write_bytes(b"a: 1\n" * 2**20)
    with pytest.raises(InputError, match="expected a small text"):
        read_yaml(tmp_path / "big.yaml")

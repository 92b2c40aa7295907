"""What a suite file may say: defaults, data sections, errors with their line."""

import pytest

from bounds.types import InputError
from merging.models import KINDS
from merging.suites.suite_file import read
from merging.suites.suite_template import template

GOOD = """\
model: {kind: torch, base: b.safetensors, factory: a:b}
data: {text: sentence}
splits: {test: 0.5}
tasks:
  - name: one
    expert: e
    data: {path: a.csv, label: y}
  - name: two
    expert: f
    classes: [a, b]
    data:
      train: x.csv
      test: {path: y.csv, text: other}
"""


def written(tmp_path, text):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return path


def test_a_task_completes_what_all_have_in_common(tmp_path):
    found = read(written(tmp_path, GOOD))
    assert found.model.options == {"factory": "a:b"}
    (one,) = found.sources(0).values()
    assert (one.path, one.text, one.label, one.classes) == ("a.csv", "sentence", "y", None)
    two = found.sources(1)
    assert {split: (s.path, s.text, s.classes) for split, s in two.items()} == {
        "train": ("x.csv", "sentence", ("a", "b")),
        "test": ("y.csv", "other", ("a", "b")),
    }
    assert found.path("x/y") == tmp_path / "x/y"


def whole(path):
    found = read(path)
    return [found.sources(index) for index in range(len(found.file.tasks))]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("name: two", "name: one"), r"suite.yaml, line 4, tasks: expected one task or more.*'one' twice"),
        (("expert: f", "expertt: f"), r"line 8, tasks.1.expert"),
        (("expert: f", "expert: 3"), r"line 9, tasks.1.expert: expected a valid string; got 3"),
        (("classes: [a, b]", "classes: [no, yes]"), r"line 10, tasks.1.classes.0: expected a valid string; got False"),
        (("seed", "seed"), None),
        (("label: y", "lable: y"), r"line 7, tasks.0.data.lable: expected only path, dataset.*; got 'y'; see"),
        (("label: y", "dataset: d"), r"expected either path or dataset; got both"),
        (
            ("      train: x.csv", "      train: x.csv\n      path: z"),
            r"line 11, tasks.1.data: expected names",
        ),
        (("      train: x.csv", "      train: [x.csv]"), r"line 12, tasks.1.data.train: expected a path, or names"),
        (("kind: torch, ", ""), r"line 1, model.kind: expected .*; got nothing"),
        (("tasks:", "taskz:"), r"line 1, (taskz|tasks)"),
    ],
)
def test_errors_name_the_line(tmp_path, change, match):
    path = written(tmp_path, GOOD.replace(*change))
    if match is None:
        read(path)
        return
    with pytest.raises(InputError, match=match):
        whole(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_of_every_kind_is_a_suite_file(tmp_path, kind):
    found = read(written(tmp_path, template(kind)))
    assert found.model.kind == kind
    assert list(found.sources(0)) == [""]
    assert list(found.sources(1)) == ["train", "validation", "test"]

import csv

import pytest
import torch

from bounds.types import InputError
from diagnostics.cache import Cache
from diagnostics.sections import sweep as section
from diagnostics.settings import Settings
from diagnostics.sweep import main
from diagnostics.workspace import Subject, Workspace
from merging import merge
from merging.artifact import save
from merging.params import norm
from merging.suites import toy

QUICK = [
    "--workers",
    "1",
    "--kernel",
    "12",
    "--held-out",
    "24",
    "--train",
    "30",
    "--draws",
    "8",
    "--s",
    "0",
    "0.5",
    "1",
]


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.3)


@pytest.fixture(scope="module")
def artifact(suite):
    return merge(
        "samerging", suite.task_vectors, suite.tasks, suite="toy", sources=toy.build().sources, steps=20, examples=16
    )


def space(suite, artifact):
    settings = Settings(held_out=12, kernel=6, train=12, draws=4)
    return Workspace([Subject("m", "m.pt", artifact)], lambda: suite, settings, Cache(None))


def test_coefficients_and_weights_are_one_path_for_a_merge_of_task_vectors(suite, artifact):
    workspace = space(suite, artifact)
    subject = workspace.subjects[0]
    one = section.merge_direction(workspace, subject, (0.0, 1.0))
    other = section.merge_direction(workspace, subject, (0.0, 1.0), "coefficients")
    for name, value in one.displacement.items():
        assert torch.allclose(value, other.displacement[name], atol=1e-12)
    assert one.key != other.key


def test_random_directions_have_the_merges_norm_on_every_tensor_and_differ(suite, artifact):
    workspace = space(suite, artifact)
    subject = workspace.subjects[0]
    reference = workspace.displacement(subject)
    drawn = [section.random_direction(workspace, subject, i, (0.0, 1.0)).displacement for i in range(2)]
    for name, value in reference.items():
        for direction in drawn:
            assert float(direction[name].norm()) == pytest.approx(float(value.norm()), abs=1e-12)
    cosine = sum(float((drawn[0][n] * drawn[1][n]).sum()) for n in reference) / norm(reference) ** 2
    assert abs(cosine) < 0.9


def test_an_experts_path_ends_at_the_expert(suite, artifact):
    workspace = space(suite, artifact)
    subject = workspace.subjects[0]
    result = section.sweep(workspace, subject, [section.expert_direction(workspace, 1, (0.0, 1.0))])
    point = result.paths[0].points[1]
    risk = 0.0
    for task in suite.tasks:
        sample = workspace.held_out(task)
        assert sample.labels is not None
        scores = task.forward(suite.task_vectors.expert(1), sample.inputs)
        risk += float(torch.nn.functional.cross_entropy(scores, sample.labels)) / 3
    assert point.risk.value == pytest.approx(risk)
    assert point.distance == pytest.approx(norm(suite.task_vectors.deltas[1]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    suite = toy.build()
    whole = merge(
        "samerging", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources, steps=20, examples=16
    )
    save(whole, folder / "out.pt")
    arguments = ["--merged", str(folder / "out.pt"), "--out", str(folder / "r"), "--experts", "task1", *QUICK]
    assert main([*arguments, "--random-directions", "2"]) == 0
    return folder


def test_the_csv_has_every_reading_and_term_of_every_point(made):
    rows = list(csv.DictReader((made / "r" / "sweep.csv").read_text().splitlines()))
    assert {r["kind"] for r in rows} == {"merge", "expert", "random"}
    assert len(rows) == 4 * 3 * 3
    for row in rows:
        assert float(row["gap"]) == pytest.approx(float(row["bound"]) - float(row["risk"]))
        terms = [float(v) for k, v in row.items() if k.startswith("term: ") and v]
        assert sum(terms) == pytest.approx(float(row["bound"]))
        if row["reading"] == "corrected":
            assert float(row["bound"]) >= float(row["risk"])
            assert row["term: transfer error"]
    assert sorted(p.name for p in (made / "r" / "figures").glob("*.svg")) == [
        "path-1-merge.svg", "path-2-expert.svg", "path-3-random.svg", "path-4-random.svg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--s", "1", "0"], "grid of s: expected"),
        (["--s", "-1", "0"], "grid of s: expected"),
        (["--experts", "task9"], "experts: expected all or task0"),
        (["--random-directions", "-1"], "random directions: expected"),
    ],
)
def test_bad_input_is_one_line_and_status_two(made, arguments, message, capsys, tmp_path):
    assert main(["--merged", str(made / "out.pt"), "--out", str(tmp_path / "r"), "--workers", "1", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_coefficients_are_refused_for_a_merge_without_them(suite, artifact):
    import dataclasses

    bare = dataclasses.replace(artifact, coefficients=None, blocks=None)
    workspace = space(suite, bare)
    with pytest.raises(InputError, match="not linear in the task vectors"):
        section.merge_direction(workspace, workspace.subjects[0], (0.0, 1.0), "coefficients")

import csv
import dataclasses
import json

import pytest
import torch

from bounds import ntk
from bounds.flatness import sharpness
from bounds.types import InputError
from diagnostics.sections import sweep as section
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.sweep import as_csv, main
from diagnostics.work.cache import Cache
from diagnostics.workspace import Workspace
from merging import merge, merged
from merging.artifact import save
from merging.params import combine, norm
from merging.plain import from_plain, to_plain
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
    settings = Settings(held_out=12, kernel=6, train=12, draws=4, gram=4)
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
        assert float(row["kernel_rotation"]) >= 0
        assert float(row["sharpness"]) != 0
        if float(row["s"]) == 0:
            assert float(row["kernel_rotation"]) == float(row["kernel_relative_change"]) == 0
        if row["reading"] == "corrected":
            assert float(row["bound"]) >= float(row["risk"])
            assert row["term: transfer error"]
    assert sorted(p.name for p in (made / "r" / "figures").glob("*.svg")) == [
        "path-1-merge.svg", "path-2-expert.svg", "path-3-random.svg", "path-4-random.svg",
    ]  # fmt: skip


def test_the_json_holds_what_the_csv_holds_and_can_be_read_back(made):
    content = json.loads((made / "r" / "sweep.json").read_text(encoding="utf-8"))
    read = from_plain(section.SweepSection, content)
    assert to_plain(read) == content
    assert as_csv(read) == (made / "r" / "sweep.csv").read_text(encoding="utf-8")
    svg = (made / "r" / "figures" / "path-1-merge.svg").read_text(encoding="utf-8")
    for part in ("rotation S", "sharpness (nats)", "n = 4", "n = 24"):
        assert part in svg


def test_drift_and_sharpness_along_the_path_are_those_of_the_point(suite, artifact):
    workspace = space(suite, artifact)
    subject = workspace.subjects[0]
    direction = section.merge_direction(workspace, subject, (0.5, 1.0))
    local = section.Local(drift=True, sharpness=True)
    half, whole = section.sweep(workspace, subject, [direction], local=local).paths[0].points
    base = suite.task_vectors.base
    for point in (half, whole):
        theta = combine(base, direction.displacement, point.s)
        rotations, changes, increases = [], [], []
        for task in suite.tasks:
            sample = workspace.held_out(task)
            drift = ntk.drift(task.forward, base, theta, sample.take(slice(4)).inputs)
            rotations.append(drift.rotation.value)
            changes.append(drift.relative_change.value)
            increases.append(sharpness(task.forward, theta, sample, 0.05).increase)
        assert point.rotation == pytest.approx(sum(rotations) / 3)
        assert point.relative_change == pytest.approx(sum(changes) / 3)
        assert point.sharpness == pytest.approx(sum(increases) / 3)
    plain = section.sweep(workspace, subject, [direction]).paths[0].points[1]
    assert plain.rotation is plain.relative_change is plain.sharpness is None
    assert plain.bounds == pytest.approx(whole.bounds)
    assert set(plain.bounds) == {"linearised", "corrected"}
    every = section.sweep(workspace, subject, [direction], local=section.Local(assumed=True)).paths[0].points[1]
    assert every.bounds == pytest.approx({**whole.bounds, "assumed-linear": every.bounds["assumed-linear"]})
    assert every.risk.value == pytest.approx(plain.risk.value)
    at_start = dataclasses.replace(direction, grid=(0.0,))
    for assumed in (False, True):
        (origin,) = section.sweep(workspace, subject, [at_start], local=section.Local(assumed=assumed)).paths[0].points
        assert origin.residual == origin.transfer.value == 0.0


def test_an_experts_derivatives_are_those_measured_at_the_pretrained_weights(suite, artifact):
    workspace = space(suite, artifact)
    subject = workspace.subjects[0]
    known = section.expert_direction(workspace, 1, (0.0, 1.0))
    measured = dataclasses.replace(known, expert=None, key="again")
    one, other = (section.sweep(workspace, subject, [d]).paths[0] for d in (known, measured))
    for a, b in zip(one.points, other.points, strict=True):
        assert a.bounds == pytest.approx(b.bounds)
        assert (a.residual, a.linear_risk.value) == pytest.approx((b.residual, b.linear_risk.value))


def test_the_sweep_of_coefficients_is_the_merge_of_scaled_coefficients(suite, artifact):
    workspace = space(suite, artifact)
    subject = workspace.subjects[0]
    direction = section.merge_direction(workspace, subject, (0.0, 0.5), "coefficients")
    point = section.sweep(workspace, subject, [direction], "coefficients").paths[0].points[1]
    theta = merged(suite.task_vectors, 0.5 * artifact.coefficients, artifact.blocks)
    risks = []
    for task in suite.tasks:
        sample = workspace.held_out(task)
        assert sample.labels is not None
        risks.append(float(torch.nn.functional.cross_entropy(task.forward(theta, sample.inputs), sample.labels)))
    assert point.risk.value == pytest.approx(sum(risks) / 3)
    moved = {name: value - suite.task_vectors.base[name] for name, value in theta.items()}
    assert point.distance == pytest.approx(norm(moved))


def test_control_experts_are_all_or_spread_from_the_nearest_to_the_farthest(suite, artifact):
    workspace = space(suite, artifact)
    sizes = [norm(d) for d in suite.task_vectors.deltas]
    order = sorted(range(3), key=sizes.__getitem__)
    assert section.spread_experts(workspace, 3) == section.spread_experts(workspace, 9) == [0, 1, 2]
    assert section.spread_experts(workspace, 2) == sorted([order[0], order[2]])
    assert section.spread_experts(workspace, 1) == [order[1]]


def test_the_command_sweeps_every_expert_and_coefficients_when_asked(made, tmp_path):
    arguments = ["--merged", str(made / "out.pt"), "--out", str(tmp_path / "r"), *QUICK]
    more = ["--mode", "coefficients", "--no-drift", "--no-sharpness", "--random-directions", "0"]
    assert main([*arguments, *more]) == 0
    content = json.loads((tmp_path / "r" / "sweep.json").read_text(encoding="utf-8"))
    assert content["mode"] == "coefficients"
    assert [p["kind"] for p in content["paths"]] == ["merge", "expert", "expert", "expert"]
    assert content["paths"][0]["points"][0]["sharpness"] is None
    assert main([*arguments, *more, "--experts", "none"]) == 0
    content = json.loads((tmp_path / "r" / "sweep.json").read_text(encoding="utf-8"))
    assert [p["kind"] for p in content["paths"]] == ["merge"]
    assert {p.name for p in (tmp_path / "r" / "figures").glob("*.svg")} == {"path-1-merge.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--s", "1", "0"], "grid of s: expected"),
        (["--s", "-1", "0"], "grid of s: expected"),
        (["--experts", "task9"], "experts: expected all, none, or some of task0"),
        (["--experts", "all", "task1"], "experts: expected all, none"),
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
    bare = dataclasses.replace(artifact, coefficients=None, blocks=None)
    workspace = space(suite, bare)
    with pytest.raises(InputError, match="not linear in the task vectors"):
        section.merge_direction(workspace, workspace.subjects[0], (0.0, 1.0), "coefficients")

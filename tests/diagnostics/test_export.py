"""The export command and the model card: what is refused, and what the card says. (tests/merging/suites/test_from_file
goes from files to a folder that transformers loads.)"""

import dataclasses
from pathlib import Path

import pytest
import torch

from bounds.types import InputError
from diagnostics import report
from diagnostics.export import export, main
from diagnostics.folder import as_json
from diagnostics.model_card import coefficients, merge_of, render_card
from diagnostics.settings import Settings
from merging import artifact, merge
from merging.suites import toy

SMALL = Settings(held_out=4, kernel=4, train=4, draws=4, points=3, control_points=2, resamples=10)


def card(merged, measured=None):
    return render_card(
        "mine",
        merged,
        measured,
        recipe="load()",
        precision="float32",
        files=["a.safetensors"],
        base="the/base",
        notes={"task0": "renamed"},
    )


def test_the_card_says_what_was_merged_measured_and_certified():
    suite = toy.build()
    merged = merge("samerging", suite, steps=2, examples=8, batch=4, granularity="tensor")
    found = report(merged, suite, settings=SMALL, sections=("accuracy", "certificates")).data
    text = card(merged, merge_of(found, merged, Path("report.json")))
    accuracy = found.merges[0].accuracy.tasks[1]
    assert (
        f"| task1 | 48 | {100 * accuracy.accuracy['pretrained']:.1f} | {100 * accuracy.accuracy['expert']:.1f}" in text
    )
    assert (
        f"at most {100 * found.merges[0].certificates.rows[0].value:.1f} % errors, by (14) (error, α-weighted)" in text
    )
    assert "| steps | 2 |" in text
    assert "| running statistics | average |" in text
    assert "| toy | `seed 0` |" in text
    assert "task0: renamed" in text
    first = coefficients(merged)[0]
    assert merged.coefficients is not None
    assert first.mean == pytest.approx(float(merged.coefficients[0].mean()))
    assert f"| task0 | {first.mean:.3f} | {first.least:.3f} |" in text
    assert "base_model: the/base" in text
    followed = merge("average+svc:floor=1", suite)
    with pytest.raises(InputError, match=r"one on this merge by average\+svc; got one on samerging"):
        merge_of(found, followed, Path("report.json"))
    for said in (
        "merged by **average+svc** (",
        "2602.05536",
        "| svc.floor | 1.0 |",
        "tags: [merge, mergebound, average, svc]",
    ):
        assert said in card(followed)
    bare = card(merge("ties", suite, scale=0.4))
    assert "No report was given" in bare
    assert "there is no λ to show" in bare


def test_a_report_on_another_merge_is_refused():
    suite = toy.build()
    one, two = (merge("task_arithmetic", suite, scale=scale) for scale in (0.3, 0.4))
    found = report(one, suite, settings=SMALL, sections=("accuracy",)).data
    with pytest.raises(InputError, match=r"report r.json: expected one on this merge by task_arithmetic; got one on"):
        merge_of(found, two, Path("r.json"))
    assert merge_of(found, one, Path("r.json")).label == "task_arithmetic"


def test_suites_without_a_library_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    suite = dataclasses.replace(toy.build(), origin="toy")
    merged = merge("average", suite)
    with pytest.raises(
        InputError, match="suite toy: expected one of a kind of network that is written; got none known"
    ):
        export(merged, suite, Path("folder"))
    artifact.save(merged, "out.pt")
    assert main(["out.pt", "--to", "folder"]) == 2
    assert "none known; use a suite file" in capsys.readouterr().err
    assert not Path("folder").exists()
    found = report(merged, suite, settings=SMALL, sections=("accuracy",)).data
    Path("r.json").write_text(as_json(found))
    torch.save({"a": 1}, "foreign.pt")
    assert main(["foreign.pt", "--to", "folder"]) == 2
    assert main(["out.pt", "--to", "no/such/folder"]) == 2
    assert main(["out.pt", "--to", "folder", "--report", "none.json"]) == 2

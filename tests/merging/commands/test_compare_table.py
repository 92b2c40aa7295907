"""A comparison as tables: every form says the same, and marks what the test examples do not tell apart."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from bounds.types import Estimate
from merging.commands.compare_rows import OverSeeds, Row
from merging.commands.compare_table import FEW_SEEDS, ONE_SEED, Shown
from merging.commands.ranks import Standing
from merging.suites import toy

BEST = Row(
    label="fisher",
    method="fisher",
    settings={"examples": 8},
    seeds=(0, 1),
    rank=1,
    accuracy=[0.9, 0.8, 0.7],
    by_seed=[[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]],
    mean=OverSeeds(0.8, 0.012),
    sampled=Estimate(0.8, 0.02, 144, "estimated"),
    gain=Estimate(0.75, 0.05, 144, "estimated"),
    published_gain=0.5,
    standing=Standing(1, 2, ["average"], ["a"]),
    kl=OverSeeds(0.5, 0.01),
    cross_entropy=OverSeeds(1.0, 0.02),
    distance=2.0,
    seconds=0.5,
    passes=16.0,
    memory=500.0,
)
NEAR = replace(
    BEST,
    label="average",
    method="average",
    seeds=(),
    rank=2,
    mean=OverSeeds(0.79),
    published_gain=None,
    to_best=Estimate(-0.01, 0.008, 144, "estimated"),
    to_above=Estimate(-0.01, 0.008, 144, "estimated"),
    told_apart={"best": False, "above": False},
    standing=Standing(1, 3, ["fisher", "ties"], ["a", "b"]),
)
FAR = replace(
    NEAR,
    label="ties",
    rank=3,
    to_best=Estimate(-0.1, 0.02),
    told_apart={"best": True, "above": False},
    standing=Standing(2, 3, ["average"], ["b"]),
)
FAILED = Row(label="slerp", method="slerp", settings={}, reason="two experts|more")
PRETRAINED = replace(
    NEAR,
    label="pretrained",
    method="pretrained",
    rank=None,
    to_above=None,
    told_apart={"best": True},
    standing=None,
)
ROWS = (BEST, NEAR, FAR, PRETRAINED, FAILED)


@pytest.fixture(scope="module")
def suite():
    return toy.build()


def shown(suite, **options):
    return Shown(ROWS, suite, **options)


def test_the_first_table_says_what_ranks_mean(suite):
    (_, header, lines), *_ = shown(suite).tables()
    assert header == ["#", "method", "seeds", "mean", "gain", "to best", "to # above", "ranks", "letters"]
    assert lines == [
        ["1", "fisher", "2", "80.0 ± 1.2", "0.75 ± 0.05", "best", "", "1–2", "a"],
        ["2", "average", "", "79.0", "0.75 ± 0.05", "-1.0 ± 0.8 ≈", "-1.0 ± 0.8 ≈", "1–3", "a b"],
        ["3", "ties", "", "79.0", "0.75 ± 0.05", "-10.0 ± 2.0", "-1.0 ± 0.8 ≈", "2–3", "b"],
        ["", "pretrained", "", "79.0", "0.75 ± 0.05", "-1.0 ± 0.8", "", "", ""],
    ]


def test_the_notes_name_the_rows_that_may_be_as_good(suite):
    first, second, *rest = shown(suite).notes()
    assert first == "Not told apart from the best merge, fisher: average."
    assert second == "Of all 3 pairs of merges together 1 are told apart. May have the best mean: fisher, average."
    assert FEW_SEEDS in rest
    assert rest[-1] == "slerp did not run: two experts|more"
    many, one = (replace(BEST, seeds=tuple(range(count))) for count in (5, 1))
    assert not {ONE_SEED, FEW_SEEDS} & set(Shown((many, NEAR), suite).notes())
    assert ONE_SEED in Shown((one, FAR), suite).notes()
    assert Shown((one, FAR), suite).notes()[0].endswith("fisher: none.")


def test_csv_has_every_number_in_a_cell_of_its_own(suite):
    best, near, far, pretrained, failed = csv.DictReader(io.StringIO(shown(suite).csv()))
    assert (best["mean"], best["mean ±"], best["mean ± with test examples"]) == ("80.0", "1.2", "2.0")
    assert (near["ranks"], near["letters"]) == ("1–3", "a b")
    assert (pretrained["ranks"], failed["letters"]) == ("", "")
    assert (best["KL"], best["KL ±"]) == ("0.500", "0.010")
    assert (best["to best"], best["to best told apart"]) == ("", "")
    assert (near["to best"], near["to best ±"], near["to best told apart"]) == ("-1.0", "0.8", "no")
    assert (far["to best told apart"], far["to # above told apart"]) == ("yes", "no")
    assert (pretrained["rank"], far["rank"], near["mean ±"]) == ("", "3", "")
    assert (best["task0"], failed["task0"], failed["reason"]) == ("90.0", "", "two experts|more")


def test_a_task_may_have_the_name_of_a_figure(suite):
    tasks = [task.changed(name=name) for task, name in zip(suite.tasks, ("mean", "KL", "gain"), strict=True)]
    named = shown(suite)
    object.__setattr__(named, "suite", type("Named", (), {"tasks": tasks, "name": "named", "per_position": False}))
    header, first, *_ = csv.reader(io.StringIO(named.csv()))
    assert [cell for name, cell in zip(header, first, strict=True) if name == "mean"] == ["80.0", "90.0"]


def test_markdown_and_terminal_have_the_marks(suite):
    text = shown(suite).markdown()
    assert "| 2 | average |  | 79.0 | 0.75 ± 0.05 | -1.0 ± 0.8 ≈ | -1.0 ± 0.8 ≈ | 1–3 | a b |\n" in text
    assert "| ---: | --- | ---: |" in text
    assert "two experts\\|more" in text
    output = Console(width=120, file=io.StringIO())
    shown(suite).show(output)
    printed = output.file.getvalue()  # pyright: ignore
    assert "-1.0 ± 0.8 ≈" in printed
    assert "Not told apart from the best merge, fisher: average." in printed


def test_long_labels_are_whole_on_the_terminal(suite):
    long = replace(BEST, label="samerging:" + ",".join(f"setting{i}=1" for i in range(12)))
    output = Console(width=80, file=io.StringIO())
    Shown((long, NEAR), suite).show(output)
    assert "…" not in output.file.getvalue()  # pyright: ignore


def test_json_has_errors_and_null_where_there_is_none(suite):
    single = replace(NEAR, sampled=Estimate(0.5, math.inf))
    content = json.loads(Shown((BEST, single, FAILED), suite).json())
    best, near, failed = content["rows"]
    assert content["schema"] == "mergebound.compare/2"
    assert best["mean"] == {"value": 0.8, "stderr": 0.012}
    assert near["to_best"] == {"value": -0.01, "stderr": 0.008, "n": 144, "status": "estimated"}
    assert near["told_apart"] == {"best": False, "above": False}
    assert near["sampled"]["stderr"] is None
    assert near["standing"] == {"best": 1, "worst": 3, "alike": ["fisher", "ties"], "letters": ["a", "b"]}
    assert failed["mean"] is None


def test_published_gains_stand_beside_when_asked(suite):
    (_, header, lines), *_ = shown(suite, published="clip-ta8:ViT-B-32").tables()
    place = header.index("published gain")
    assert [line[place] for line in lines] == ["0.50", "", "", ""]
    assert "FusionBench" in " ".join(shown(suite, published="clip-ta8:ViT-B-32").notes())
    assert "published" not in shown(suite).markdown()

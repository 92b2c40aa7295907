"""Kept results are found again exactly when all that they looked at is as it was."""

from dataclasses import replace

import pytest
import torch

from diagnostics.report import build
from diagnostics.settings import Settings
from diagnostics.subject import Subject
from diagnostics.work.cache import Cache
from diagnostics.work.pieces import Keeper, Pieces
from diagnostics.work.reads import Noted, Reads, made_once
from diagnostics.workspace import Workspace
from merging import merge
from merging.plain import to_plain
from merging.suites import toy

SMALL = Settings(
    held_out=8, kernel=4, train=8, draws=4, weight_draws=1, points=3, control_points=2, control_experts=1, gram=2,
    hessian=2, gibbs_draws=1, resamples=10,
)  # fmt: skip


class World:
    """Two fields, one value made from the first, and a keeper that counts what is computed."""

    def __init__(self, folder, **today):
        self.reads = Reads(today.__getitem__)
        self.fields = Noted(type("Fields", (), today), self.reads)
        self.keeper = Keeper(Cache(folder), self.reads, lambda: "world")
        self.computed = []

    @made_once
    def twice(self):
        return 2 * self.fields.a

    def one(self, index):
        self.computed.append(index)
        return {"value": self.twice + index}

    def pieces(self):
        return [p["value"] for p in self.keeper.pieces(Pieces("p", "of", self.one, 2), "")]


def test_a_piece_rests_on_what_it_looked_at_even_through_a_value_made_before(tmp_path):
    first = World(tmp_path, a=1, b=1)
    assert first.twice == 2  # made before the pieces are
    assert first.pieces() == [2, 3]
    other = World(tmp_path, a=1, b=2)  # nobody looked at b
    assert other.pieces() == [2, 3]
    assert other.computed == []
    changed = World(tmp_path, a=5, b=1)
    assert changed.pieces() == [10, 11]
    assert changed.computed == [0, 1]
    again = World(tmp_path, a=1, b=1)  # both variants are kept
    assert again.pieces() == [2, 3]
    assert again.computed == []
    with again.reads.recording() as seen:
        again.pieces()
    assert seen == {"a"}


def test_a_value_taken_by_a_piece_counts_as_read_by_it(tmp_path):
    for a, expected in ((1, 1), (7, 7)):
        world = World(tmp_path, a=a, b=0)
        made = world.reads.make(lambda world=world: world.fields.a)
        (piece,) = world.keeper.pieces(Pieces("q", "", lambda i, made=made: {"value": made.take()}, 1), "")
        assert piece["value"] == expected


def test_lost_notes_cost_a_computation_and_nothing_else(tmp_path):
    World(tmp_path, a=1, b=1).pieces()
    (tmp_path / "reads-p.pt").write_bytes(b"?")
    again = World(tmp_path, a=1, b=1)
    assert again.pieces() == [2, 3]
    assert again.computed == [0, 1]


@pytest.fixture(scope="module")
def suite():
    return toy.build(overlap=0.3)


@pytest.fixture(scope="module")
def artifact(suite):
    return merge("samerging", suite.task_vectors, suite.tasks, suite="toy", sources=suite.sources, steps=3, examples=8)


def numbers(suite, artifact, settings, cache, alpha=()):
    space = Workspace([Subject("m", "-", artifact)], lambda: suite, settings, cache, alpha)
    return to_plain(build(space).merges)


@pytest.fixture(scope="module")
def kept(suite, artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    numbers(suite, artifact, SMALL, Cache(folder))
    return folder


CHANGES = {"draws": 6, "weight_draws": 2, "delta": 0.1, "rho": 0.1, "tolerance": 0.3, "seed": 1}


@pytest.mark.parametrize("change", [{name: value} for name, value in CHANGES.items()], ids=CHANGES)
def test_a_changed_setting_gives_with_a_cache_what_it_gives_without(suite, artifact, kept, change):
    settings = replace(SMALL, **change)
    assert numbers(suite, artifact, settings, Cache(kept)) == numbers(suite, artifact, settings, Cache(None))


def test_changed_weights_of_tasks_give_with_a_cache_what_they_give_without(suite, artifact, kept):
    alpha = (0.5, 0.3, 0.2)
    assert numbers(suite, artifact, SMALL, Cache(kept), alpha) == numbers(suite, artifact, SMALL, Cache(None), alpha)


def test_results_in_a_report_carry_the_label_of_today(suite, artifact, kept):
    for label in ("m", "other"):
        space = Workspace([Subject(label, "-", artifact)], lambda: suite, SMALL, Cache(kept))
        assert build(space, ("sweep",)).merges[0].sweep.paths[0].name == label


def test_pieces_of_several_processes_note_what_they_looked_at(tmp_path):
    world = World(tmp_path, a=1, b=1)
    world.keeper.workers = 2
    assert world.pieces() == [2, 3]
    assert World(tmp_path, a=2, b=1).pieces() == [4, 5]
    assert torch.load(tmp_path / "reads-p.pt", weights_only=True)["value"]["fields"] == [["a"]]


def test_settings_of_one_report_serve_another(suite, artifact):
    first = Workspace([Subject("m", "-", artifact)], lambda: suite, SMALL)
    again = Workspace(first.subjects, lambda: suite, first.settings)
    assert build(again, ("accuracy",)).settings == SMALL

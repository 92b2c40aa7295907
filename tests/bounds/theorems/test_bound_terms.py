"""Rows of the terms: unique, complete, and what every term of a bound is read from."""

import ast
import inspect
from dataclasses import replace

import pytest
import torch

import bounds.theorems as theorems
from bounds.distillation import ladder
from bounds.theorems import (
    KIND_OF,
    KINDS,
    Corrected,
    MergeAnchor,
    MergedModel,
    direct,
    mixture,
    single_model,
    student,
    terms,
    theorem2,
    theorem3,
)
from bounds.theorems import experts as expert_side
from bounds.types import Estimate
from tests.experts_world import ALPHA, ANCHORS, DELTA, WEIGHTS, estimate, experts


def every_bound():
    anchor = MergeAnchor(
        risk=estimate(0.4), gradient_norm_sq=estimate(9.0), distance_sq=4.0, kernel_dispersion=estimate(1.3)
    )
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = ladder([scores], [scores.flip(0)], (1.0,))
    yield theorem2(
        experts(), MergedModel(estimate(0.1), estimate(0.02)), WEIGHTS, delta=DELTA, reading=Corrected(estimate(0.1))
    )
    yield theorem2(experts(), MergedModel(None, anchors=[anchor] * 3), WEIGHTS, delta=DELTA)
    yield theorems.direct_form(ANCHORS, ALPHA, delta=DELTA)
    yield theorem3(made, [Estimate(0.1)])
    yield theorems.argmax_error(made, [Estimate(0.1)])


def test_rows_are_unique_and_say_everything():
    assert len(KIND_OF) == len(KINDS) == 17
    for kind in KINDS:
        assert all((kind.name, kind.symbol, kind.equation, kind.colour))
        assert kind.explanation.endswith(".")


def test_every_term_of_every_bound_has_a_row():
    for bound in every_bound():
        assert bound.terms, bound.name
        for term in bound.terms:
            assert term.name in KIND_OF, f"{bound.name}: {term.name}"


def test_rows_are_collected_without_a_list():
    assert {k.name for k in vars(terms).values() if isinstance(k, terms.TermKind)} == set(KIND_OF)


@pytest.mark.parametrize("module", [direct, expert_side, mixture, single_model, student], ids=lambda m: m.__name__)
def test_no_name_of_a_term_is_typed_by_hand(module):
    """A name, once typed, would have to be changed with the row."""
    tree = ast.parse(inspect.getsource(module))
    typed = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    allowed = {"heterogeneity"}  # a method of Experts, not a term
    assert not (typed & set(KIND_OF)) - allowed


def test_a_new_row_needs_no_change_where_bounds_are_assumed_linear(monkeypatch):
    """Which terms are assumed is read from the rows."""
    changed = {**KIND_OF, "complexity": replace(KIND_OF["complexity"], linear=True)}
    monkeypatch.setattr(single_model, "KIND_OF", changed)
    bound = theorem2(experts(), MergedModel(None), WEIGHTS, delta=DELTA, reading="assumed-linear")
    assumed = {t.name for t in bound.terms if t.estimate.status == "assumed"}
    assert assumed == {"kernel-weighted noise", "consensus gap", "complexity"}


def test_the_way_from_the_merge_to_the_anchors_is_assumed_where_linearity_is():
    """(6) uses linearity in all three terms beside the merge's own risk."""
    anchor = MergeAnchor(
        risk=estimate(0.4), gradient_norm_sq=estimate(9.0), distance_sq=4.0, kernel_dispersion=estimate(1.3)
    )
    merge = MergedModel(estimate(0.1), estimate(0.02), [anchor] * 3)
    bound = theorem2(experts(), merge, WEIGHTS, delta=DELTA, reading="assumed-linear")
    certain = {t.name for t in bound.terms if t.estimate.status != "assumed"}
    assert certain == {"risk of the merge", "complexity", "Poincaré flatness", "heterogeneity"}

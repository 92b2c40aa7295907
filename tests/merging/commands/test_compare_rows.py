"""Rows of a comparison: ranks, means over seeds, gains and paired differences."""

import math

import pytest
import torch

from bounds.types import InputError
from merging.commands.compare_rows import ranked
from merging.commands.measure import Measurement, Spec
from merging.commands.packed import pack
from merging.commands.ranks import Standing

BITS = {
    "pretrained": ["1000000000", "0000000000"],
    "experts": ["1111111110", "1111111111"],
    "average": ["1111100000", "1111100000"],
    "ties": ["1111000000", "1111100000"],
    "fisher": ["1111111100", "1111111000"],
}


def measured(spec, bits, seconds=1.0):
    right = [torch.tensor([float(b) for b in text]) for text in bits]
    return Measurement(
        label=spec.label,
        method=spec.method,
        settings=spec.settings,
        accuracy=[float(r.mean()) for r in right],
        correct=[pack(r) for r in right],
        cross_entropy=[1.0, 2.0],
        kl=[0.5, seconds],
        distance=2.0,
        seconds=seconds,
        search_seconds=None,
    )


def found(names=tuple(BITS)):
    return {name: (Spec(name), [measured(Spec(name), BITS[name])]) for name in names}


def test_merges_have_ranks_and_references_have_none():
    rows = ranked(found(), (0,), {})
    assert [row.label for row in rows] == ["experts", "fisher", "average", "ties", "pretrained"]
    assert [row.rank for row in rows] == [None, 1, 2, 3, None]
    by_label = {row.label: row for row in rows}
    best, average, ties = by_label["fisher"], by_label["average"], by_label["ties"]
    assert best.is_best
    assert best.to_best is best.to_above is None
    assert average.to_best == average.to_above
    assert average.to_best is not None
    assert average.to_best.value == pytest.approx(0.5 - 0.75)
    variance = (0.3 * 0.7 + 0.2 * 0.8) / 9  # 3 of 10 and 2 of 10 examples differ, all of them in one direction
    assert average.to_best.stderr == pytest.approx(math.sqrt(variance / 4))
    assert average.told_apart == {"best": True, "above": True}
    assert ties.told_apart == {"best": True, "above": False}, "one example of twenty differs"
    assert by_label["experts"].told_apart == {"best": True}
    assert by_label["experts"].to_above is None
    assert not any(row.is_near_best for row in rows)
    alike = "the best differs from the last on 6 examples, whose signs say 2^-5 at least: above 0.05 / 3"
    assert best.standing == Standing(1, 3, ["average", "ties"], ["a"]), alike
    assert [by_label[name].standing is None for name in ("experts", "pretrained")] == [True, True]


def test_gains_lie_between_the_references():
    rows = {row.label: row for row in ranked(found(), (0,), {"average": 0.4, "experts": 1.0})}
    gains = {name: row.gain.value for name, row in rows.items() if row.gain is not None}
    assert gains == {
        "pretrained": 0.0,
        "experts": 1.0,
        "average": pytest.approx((0.5 - 0.05) / 0.9),
        "ties": pytest.approx((0.45 - 0.05) / 0.9),
        "fisher": pytest.approx((0.75 - 0.05) / 0.9),
    }
    assert {name: row.published_gain for name, row in rows.items() if row.published_gain} == {
        "average": 0.4,
        "experts": 1.0,
    }


def test_experts_no_better_than_the_pretrained_model_leave_the_gain_open():
    same = found(("average",))
    for name in ("pretrained", "experts"):
        same[name] = (Spec(name), [measured(Spec(name), BITS["ties"])])
    assert all(row.gain is None for row in ranked(same, (0,), {}))


def test_seeds_are_means_with_errors_over_seeds():
    spec = Spec("fisher")
    bits = (BITS["fisher"], BITS["average"], BITS["ties"])
    seeds = [measured(one, b, s) for one, b, s in zip(spec.seeded((0, 1, 2)), bits, (1.0, 2.0, 6.0), strict=True)]
    rows = {
        r.label: r for r in ranked({**found(("pretrained", "experts", "ties")), "fisher": (spec, seeds)}, (0, 1, 2), {})
    }
    row = rows["fisher"]
    means = torch.tensor([0.75, 0.5, 0.45], dtype=torch.float64)
    assert row.mean is not None
    assert row.mean.value == pytest.approx(float(means.mean()))
    assert row.mean.stderr == pytest.approx(float(means.std()) / math.sqrt(3))
    assert row.mean.stderr is not None
    assert row.sampled is not None
    assert row.sampled.stderr > row.mean.stderr
    assert row.seconds == pytest.approx(3.0)
    assert row.search_seconds is None
    assert row.kl is not None
    assert row.kl.value == pytest.approx((0.5 + 3) / 2)
    assert row.seeds == (0, 1, 2)
    assert "seed" not in row.settings
    assert rows["ties"].seeds == ()
    assert rows["ties"].mean is not None
    assert rows["ties"].mean.stderr is None
    fixed = Spec("fisher", {"seed": 7})
    again = ranked({**found(("pretrained", "experts")), fixed.label: (fixed, [seeds[0]])}, (0, 1, 2), {})
    assert [r.settings["seed"] for r in again if r.method == "fisher"] == [7]
    assert all(r.seeds == () for r in again)


def test_what_did_not_run_stands_last_with_its_reason():
    slerp = Measurement(label="slerp", method="slerp", settings={}, reason="two experts")
    rows = ranked({"slerp": (Spec("slerp"), [slerp]), **found()}, (0,), {})
    assert (rows[-1].label, rows[-1].reason, rows[-1].rank) == ("slerp", "two experts", None)
    with pytest.raises(InputError, match="methods: expected one that runs on the suite; got two experts"):
        ranked({"slerp": (Spec("slerp"), [slerp]), **found(("pretrained", "experts"))}, (0,), {})

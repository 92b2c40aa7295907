"""The self-check passes on the installation as it is, in 20 seconds, and fails for wrong numbers."""

import math
import time

import pytest

from diagnostics import selfcheck
from diagnostics.selfcheck import CHECKS, Found, checked, main
from merging import artifact


def test_all_is_right_with_a_line_a_check(capsys):
    started = time.process_time()
    assert main([]) == 0
    assert time.process_time() - started < 20
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(CHECKS) + 1
    assert all(line.startswith("ok ") for line in lines[1:-1])
    assert lines[-1].startswith(f"all {len(CHECKS)} checks are right")


def scaled(function, factor):
    """The mutant: a function whose numbers are off by a little."""

    def wrong(*arguments, **options):
        return function(*arguments, **options) * factor

    return wrong


class Off:
    """The mutant of a result: one of its numbers is off by a little."""

    def __init__(self, result, name, by):
        self._result, self._name, self._by = result, name, by

    def __getattr__(self, name):
        value = getattr(self._result, name)
        return self._by(value) if name == self._name else value


def off(function, name, by):
    return lambda *arguments, **options: Off(function(*arguments, **options), name, by)


def shifted(params):
    return {name: value + 1e-6 for name, value in params.items()}


def unchanged(method, suite, **settings):
    """Return a merge whose learned rows have learned nothing."""
    from merging import merge

    return merge("average", suite) if method == "samerging" else merge(method, suite, **settings)


WRONG = {
    "average": ("merge", off(selfcheck.merge, "merged", shifted)),
    "every_expert_kept": ("merge", off(selfcheck.merge, "merged", shifted)),
    "learning": ("merge", unchanged),
    "artifact": ("load", off(artifact.load, "merged", shifted)),
    "kernel": ("ntk.trace", off(selfcheck.ntk.trace, "values", lambda values: values * (1 + 1e-6))),
    "linearisation": ("linearize", lambda forward, at: forward),
    "divergence": ("distillation.kl", scaled(selfcheck.distillation.kl, 1 + 1e-6)),
    "complexity": ("gaussian_kl", lambda squares, sigma: sum(squares) / sum(sigma)),
    "inverse": ("kl_inverse", scaled(selfcheck.kl_inverse, 1 + 1e-6)),
    "certificate": ("held_out", lambda errors, n, delta: selfcheck.Found(math.log(1 / delta) / n, 0.0)),
    "report_file": ("report", None),
    "shipped": ("merge", off(selfcheck.merge, "merged", lambda params: {n: v / 0 for n, v in params.items()})),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_number_fails_its_check(name, monkeypatch):
    target, wrong = WRONG[name]
    if wrong is None:  # the report of another merge

        def wrong(made, suite, **options):
            return selfcheck_report(selfcheck.merge("task_arithmetic", suite, scale=2.0), suite, **options)

        selfcheck_report = selfcheck.report
    monkeypatch.setattr(f"diagnostics.selfcheck.{target}", wrong)
    right, found = checked(getattr(selfcheck, name))
    assert not right, found


def test_every_check_has_its_mutant():
    assert [check.__name__ for check in CHECKS.values()] == list(WRONG)


def test_a_failure_is_said_ends_no_other_and_is_status_1(monkeypatch, capsys):
    def broken():
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(
        selfcheck, "CHECKS", {"one": broken, "two": lambda: Found(1.0, 2.0), "three": lambda: Found(1, 1)}
    )
    assert main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "FAILED  one: RuntimeError: no such thing"
    assert lines[2] == "FAILED  two: 1, expected 2"
    assert lines[3].startswith("ok ")
    assert lines[4].startswith("2 of 3 checks failed")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1 + 1e-8])
def test_only_the_number_itself_is_right(value):
    assert Found(1.0 + 1e-12, 1.0).right
    assert not Found(value, 1.0).right
    assert not Found(value, 1.0, below=True).right

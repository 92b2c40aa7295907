"""The equations of a report are those of docs/theory.md, in the sections that it says."""

import re

from bounds.theorems import KINDS
from diagnostics.equations import EQUATIONS, anchors, theory_file
from diagnostics.figures.notation import hint_of, in_html
from diagnostics.sections import comparison
from diagnostics.sections.table import SECTIONS


def sections():
    path = theory_file()
    assert path is not None
    text = path.read_text(encoding="utf-8")
    parts = re.split(r"^## (\d+)\. ", text, flags=re.MULTILINE)
    return text, {int(number): body for number, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_equation_stands_in_its_section():
    text, bodies = sections()
    for number, equation in EQUATIONS.items():
        assert f"\\tag{{{number}}}" in bodies[equation.section], number
        assert text.count(f"\\tag{{{number}}}") == 1
    assert "\\tag{5}" not in bodies[EQUATIONS["7"].section], "a wrong section would be seen"


def test_anchors_are_those_of_the_headings():
    text, bodies = sections()
    found = anchors(text)
    assert set(found) == set(bodies)
    assert found[5] == "5-theorem-2-the-single-merged-model"
    assert len(set(found.values())) == len(found)


def test_sections_explain_equations_that_there_are():
    assert set(comparison.HOW) <= set(EQUATIONS)
    for name, section in SECTIONS.items():
        assert set(section.how) <= set(EQUATIONS), name
    shown = {number for section in SECTIONS.values() for number in section.how}
    terms = {kind.equation.strip("()") for kind in KINDS if kind.equation in ("(1)", "(5)", "(7)")}
    assert terms <= shown, "every term of the bound leads to its equation"


def test_formulas_and_hints_hold_no_raw_index():
    for equation in EQUATIONS.values():
        assert not re.search(r"[_^]", re.sub(r"<[^>]*>", "", in_html(equation.formula))), equation.formula
        assert not re.search(r"[_^]", hint_of(equation)), hint_of(equation)
        assert equation.sentence.endswith(".")
        assert equation.sentence.count(". ") == 0, "one sentence each"

"""Sub- and superscripts: x_i and x^i, as tables and sentences write them, become HTML's or, in figures, Unicode's.

Only notation is touched, one letter or one of a few words with a short index: ``fashion_mnist`` and ``k_proj`` stay.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from html import escape

from diagnostics.equations import EQUATIONS, THEORY, Equation

_BASE = "(?<![^\\WΣΠ∇])(?<![.])((?:[^\\W\\d_]|[ΣΠ∇])\u0302?|KL|noise|price|flatness)"
_INDEX = r"[_^](?:ij|jj|ti|max|prior|lin|−K|[^\W_])"
_NOTATION = re.compile(rf"{_BASE}((?:{_INDEX}){{1,2}})(?![^\W²³⁺])")
_SUBSCRIPTS = dict(zip("0123456789aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
_SUPERSCRIPTS = dict(zip("0123456789ilnj", "⁰¹²³⁴⁵⁶⁷⁸⁹ⁱˡⁿʲ", strict=True))
_TAG = re.compile(r"(<[^>]*>)")
_KEPT = frozenset(("code", "style", "title", "svg"))
"""Elements whose text stays: it is copied from them, or was set when the figure was drawn."""
_UNLINKED = frozenset(("a", "summary", "h1", "h2", "h3", "dt"))
"""Elements in which a number of an equation is no link: they are links themselves, or head what it leads to."""


def in_unicode(text: str) -> str:
    """Return text with the sub- and superscripts that Unicode has: θ_0 becomes θ₀. Others stay as they are."""

    def convert(found: re.Match[str]) -> str:
        done = found[1]
        for sign, index in re.findall(r"([_^])([^_^]+)", found[2]):
            letters = _SUBSCRIPTS if sign == "_" else _SUPERSCRIPTS
            if not set(index) <= letters.keys():
                return found[0]
            done += "".join(letters[letter] for letter in index)
        return done

    return _NOTATION.sub(convert, text)


def in_html(text: str, names: Collection[str] = (), linked: Collection[str] = ()) -> str:
    """Return text of HTML with its sub- and superscripts, and its numbers of equations as links with a hint.

    Args:
        text: without tags, escaped.
        names: of tasks, merges and files: they stay as they are.
        linked: numbers of equations that have a place to lead to.
    """
    kept = "|".join(re.escape(escape(name)) for name in sorted(names, key=len, reverse=True))
    numbers = "|".join(map(re.escape, linked))
    pattern = re.compile(f"({kept or '(?!)'})|\\(({numbers or '(?!)'})\\)|{_NOTATION.pattern}")

    def convert(found: re.Match[str]) -> str:
        if found[1]:
            return found[0]
        if found[2]:
            hint = escape(hint_of(EQUATIONS[found[2]]))
            return f'<a class="eq" href="#eq-{found[2]}" title="{hint}">({found[2]})</a>'
        tags = {"_": "sub", "^": "sup"}
        indices = re.findall(r"([_^])([^_^]+)", found[4])
        return found[3] + "".join(f"<{tags[sign]}>{index}</{tags[sign]}>" for sign, index in indices)

    return pattern.sub(convert, text)


def hint_of(equation: Equation) -> str:
    """Return what is shown while a pointer rests on an equation's number."""
    return in_unicode(f"{equation.sentence} {THEORY}, section {equation.section}.")


def typeset(page: str, names: Sequence[str] = (), linked: Collection[str] = ()) -> str:
    """Return a page of HTML with sub- and superscripts in its texts and Unicode's in its attributes; see in_html."""
    inside: dict[str, int] = {}
    parts = _TAG.split(page)
    few = [name for name in names if re.search(r"[_^(]", name)]
    for at, part in enumerate(parts):
        if at % 2:
            _follow(part, inside)
            if "_" in part and not inside.get("svg"):
                parts[at] = re.sub(r'((?:aria-label|title)=")([^"]*)', lambda m: m[1] + in_unicode(m[2]), part)
        elif ("_" in part or "^" in part or "(" in part) and not _any(inside, _KEPT):
            parts[at] = in_html(part, few, () if _any(inside, _UNLINKED) else linked)
    return "".join(parts)


def _follow(tag: str, inside: dict[str, int]) -> None:
    """Count which of the elements that matter are open."""
    found = re.match(r"<(/?)(\w+)", tag)
    if found is not None and (found[2] in _KEPT or found[2] in _UNLINKED) and not tag.endswith("/>"):
        inside[found[2]] = inside.get(found[2], 0) + (-1 if found[1] else 1)


def _any(inside: Mapping[str, int], elements: Collection[str]) -> bool:
    return any(inside.get(element) for element in elements)

"""A figure's SVG, for the page (in the page's own ink and paper) or as a file (black on white)."""

from __future__ import annotations

import re

INK, FAINT, PAPER = "#101112", "#707274", "#fdfcfb"
"""Placeholders that figures are drawn with: text and lines, secondary lines, gaps between areas."""


def element(text: str, name: str) -> str:
    """Return what matplotlib wrote as an SVG element of no fixed size whose identifiers are unique on the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    head, body = text.split(">", 1)
    return re.sub(r'\s(width|height)="[^"]*"', "", head).replace("<svg", '<svg role="img"') + ">" + body


def on_page(svg: str) -> str:
    """Return the figure in the page's own ink and paper."""
    return svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)").replace(PAPER, "var(--paper)")


def standalone(svg: str) -> str:
    """Return the figure as a file of its own: black on white, with the size it is meant to be printed at."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    size = f'<svg width="{box[1]}pt" height="{box[2]}pt" style="background: #ffffff" '
    plain = svg.replace("<svg ", size, 1).replace(INK, "#000000").replace(FAINT, "#555555").replace(PAPER, "#ffffff")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + plain

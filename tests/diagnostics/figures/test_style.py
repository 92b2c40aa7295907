"""Colours: contrast 4.5 for text and 3 for marks, on white and on the dark page."""

import re

import pytest

from bounds.theorems import KINDS
from diagnostics.figures import style
from diagnostics.figures.svg import FAINT, INK, on_page
from diagnostics.page import _FOLDER

CSS = (_FOLDER / "report.html.j2").read_text(encoding="utf-8")
SCHEMES = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)]
"""Colours of the page in the light, in the dark and in print."""


def contrast(first, second):
    """WCAG 2.2's contrast of two colours #rrggbb or #rgb."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
        parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
        red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted(map(luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#fff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_the_page_has_three_schemes_and_its_text_can_be_read_in_each():
    assert len(SCHEMES) == 3
    for scheme in SCHEMES:
        for text in ("ink", "faint", "link", "good", "bad"):
            for ground in ("paper", "shade"):
                assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground, scheme)


@pytest.mark.parametrize("colour", sorted({*style.PALETTE.values(), *(c for c, _ in style.TERM_STYLES.values())}))
def test_marks_can_be_seen_on_white_and_in_the_dark(colour):
    for scheme in SCHEMES:
        assert contrast(colour, scheme["paper"]) >= 3, scheme


def test_colours_that_are_too_light_would_be_caught():
    assert contrast("#F0E442", "#ffffff") < 3
    assert contrast("#E69F00", "#ffffff") < 3


def test_every_term_has_a_style_and_numbers_in_cells_can_be_read():
    assert set(style.TERM_STYLES) == {kind.name for kind in KINDS}
    for grey in range(0, 256, 5):
        cell = [grey / 255] * 3
        assert contrast(style.readable_on(cell), f"#{grey:02x}{grey:02x}{grey:02x}") >= 4.5


def test_texts_of_figures_are_set_and_names_stay():
    def draw():
        figure = style.new_figure(2)
        axes = figure.subplots()
        axes.set_xlabel("‖θ_m − θ_0‖")
        axes.set_xticks([0, 1], [style.named("t_0"), style.named("fashion_mnist")])
        axes.plot([0, 1], [0, 1], label="risk of f^lin")
        axes.legend()
        return figure

    svg = on_page(style.as_images(draw, "f").svg)
    for text in ("‖θₘ − θ₀‖", "risk of fˡⁱⁿ", "t_0", "fashion_mnist", "var(--ink)"):
        assert text in svg
    assert INK not in svg
    assert FAINT not in svg

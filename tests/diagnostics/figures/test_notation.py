"""Sub- and superscripts: notation is set, names and code stay."""

import pytest

from diagnostics.figures.notation import in_html, in_unicode, typeset


@pytest.mark.parametrize(
    ("text", "unicode", "html"),
    [
        ("θ_m − θ_0", "θₘ − θ₀", "θ<sub>m</sub> − θ<sub>0</sub>"),
        ("R_ij = L_i(Q_j)", "Rᵢⱼ = Lᵢ(Qⱼ)", "R<sub>ij</sub> = L<sub>i</sub>(Q<sub>j</sub>)"),
        ("‖f − f^lin‖/‖f − f_0‖", "‖f − fˡⁱⁿ‖/‖f − f₀‖", "‖f − f<sup>lin</sup>‖/‖f − f<sub>0</sub>‖"),
        ("L^lin_α(θ)", "L^lin_α(θ)", "L<sup>lin</sup><sub>α</sub>(θ)"),
        ("Σ_b σ_b²", "Σ_b σ_b²", "Σ<sub>b</sub> σ<sub>b</sub>²"),
        ("L̂_j, KL_j, n_t/n", "L̂ⱼ, KLⱼ, nₜ/n", "L̂<sub>j</sub>, KL<sub>j</sub>, n<sub>t</sub>/n"),
        ("Σβ_j s_j", "Σβⱼ sⱼ", "Σβ<sub>j</sub> s<sub>j</sub>"),
        ("λ_prior, λ_max", "λₚᵣᵢₒᵣ, λₘₐₓ", "λ<sub>prior</sub>, λ<sub>max</sub>"),
        ("fashion_mnist, k_proj, tsv_m, weight_draws = 2, layer.q_1", None, None),
        ("no index here", None, None),
    ],
)
def test_notation_is_set_and_names_stay(text, unicode, html):
    assert in_unicode(text) == (text if unicode is None else unicode)
    assert in_html(text) == (text if html is None else html)


def test_names_that_look_like_notation_stay_on_the_page():
    assert in_html("task t_0 at θ_0", ["t_0"]) == "task t_0 at θ<sub>0</sub>"
    assert in_html("a &lt;b_0&gt; c_0", ["<b_0>"]) == "a &lt;b_0&gt; c<sub>0</sub>"


def test_numbers_of_equations_are_links_with_a_hint_where_there_is_a_place():
    text = in_html("by (5) and (7), not (5) elsewhere", [], ["5"])
    assert text.count('<a class="eq" href="#eq-5" title="Theorem 2: ') == 2
    assert "(7)" in text
    assert "#eq-7" not in text
    assert in_html("task (5)", ["task (5)"], ["5"]) == "task (5)"


def test_code_figures_and_links_are_left_alone():
    page = (
        '<title>θ_0</title><p title="at θ_0">θ_0 <code>x_0 (5)</code> <a href="#x_0">(5)</a></p>'
        "<svg><text>R_ij (5)</text></svg><h2>θ_0 (5)</h2><p>(5)</p>"
    )
    done = typeset(page, (), ["5"])
    assert done.startswith('<title>θ_0</title><p title="at θ₀">θ<sub>0</sub> <code>x_0 (5)</code> <a href="#x_0">(5)')
    assert "<text>R_ij (5)</text>" in done
    assert "<h2>θ<sub>0</sub> (5)</h2>" in done
    assert done.count("#eq-5") == 1

"""How a merge is written, and what is refused about it."""

import pytest

from bounds.types import InputError
from merging.methods import specification
from merging.specification import Specification


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tsv_m", Specification("tsv_m")),
        ("ties:density=0.1,scale=1", Specification("ties", {"density": 0.1, "scale": 1.0})),
        ("tsv_m+svc", Specification("tsv_m", {}, {"svc": {}})),
        ("ties:scale=1e+0+svc:floor=1e+0", Specification("ties", {"scale": 1.0}, {"svc": {"floor": 1.0}})),
        ("average+svc+lines:rise=None", Specification("average", {}, {"svc": {}, "lines": {"rise": None}})),
    ],
)
def test_texts_are_read_and_written_back(text, expected):
    found = specification(text)
    assert found == expected
    assert list(found.then) == list(expected.then), "in order"
    assert specification(found.label) == found


def test_the_order_of_post_processings_is_kept():
    assert specification("average+svc+lines").label == "average+svc+lines"
    assert specification("average+lines+svc").label == "average+lines+svc"


def test_without_the_settings_of_the_method():
    assert specification("ties:density=0.1+svc:floor=1").named == "ties+svc:floor=1.0"
    assert specification("ties:density=0.1").named == "ties"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tsv_m+magic", "post-processing: expected lines or svc; got 'magic'"),
        ("tsv_m+sv", "did you mean svc?"),
        ("tsv_m+svc+svc", "post-processing svc: expected once"),
        ("tsv_m+svc:flor=1", "did you mean floor?"),
        ("tsv_m+svc:floor=0", "floor: expected a number above 0"),
        ("tsv_m+lines:low=nan", "low: expected a finite number"),
        ("tsv_m+svc:floor=big", "floor: expected"),
        ("experts+svc", r"method: expected a method before \+svc"),
        ("ties:dens=0.1", "did you mean density?"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        specification(text)
    assert "\n" not in str(caught.value)

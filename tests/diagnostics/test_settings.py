import pytest

from bounds.types import InputError
from diagnostics.settings import expert_weights


@pytest.mark.parametrize("beta", [("0.25", "0.75"), ("0.25,0.75",), ("0.25 0.75",), ("0.25,", "0.75")])
def test_weights_may_have_commas_or_spaces_between_them(beta):
    assert expert_weights(beta, 2) == (0.25, 0.75)


def test_words_are_weights_too():
    assert expert_weights(("uniform",), 4) == (0.25,) * 4
    assert expert_weights(("best",), 4) is None


@pytest.mark.parametrize("beta", [(), ("",), ("Best",), ("nan", "1"), ("0.5", "0.4"), ("1", "0", "0"), ("best", "0")])
def test_anything_else_is_refused(beta):
    with pytest.raises(InputError, match="beta"):
        expert_weights(beta, 2)

"""What Gram matrices say of a kernel, with errors over their examples."""

import numpy as np
import pytest
import torch

from bounds.types import InputError
from diagnostics.sections.entk import kernel_task
from diagnostics.settings import Settings


def kernel(seed, n=6, c=3):
    rows = torch.randn(n * c, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = rows - rows.view(n, c, 40).mean(dim=1, keepdim=True).expand(n, c, 40).reshape(n * c, 40)
    return (rows @ rows.T).view(n, c, n, c)


def measures(before, after):
    """By hand, in numpy: effective rank, rotation, relative change."""
    a, b = before.reshape(len(before) * 3, -1).numpy(), after.reshape(len(after) * 3, -1).numpy()
    cosine = (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
    return np.array([np.trace(a) / np.linalg.eigvalsh(a)[-1], 1 - cosine, np.linalg.norm(b - a) / np.linalg.norm(a)])


def test_values_and_jackknife_errors_are_those_by_hand():
    before, after = kernel(0), kernel(1)
    found = kernel_task(before, after)
    estimates = (found.effective_rank, found.rotation, found.change)
    assert [e.value for e in estimates] == pytest.approx(measures(before, after), rel=1e-9)
    without = []
    for i in range(6):
        keep = [k for k in range(6) if k != i]
        without.append(measures(before[keep][:, :, keep], after[keep][:, :, keep]))
    errors = np.sqrt(5 / 6 * np.square(without - np.mean(without, axis=0)).sum(axis=0))
    assert [e.stderr for e in estimates] == pytest.approx(errors, rel=1e-9)
    assert all(e.n == 6 and e.status == "estimated" for e in estimates)
    assert len(found.eigenvalues) == 6 * 2


def test_a_kernel_that_only_grows_does_not_turn():
    before = kernel(0)
    found = kernel_task(before, 3 * before)
    assert found.rotation.value == pytest.approx(0, abs=1e-12)
    assert (found.change.value, found.change.stderr) == (pytest.approx(2), pytest.approx(0, abs=1e-7))


@pytest.mark.parametrize("name", ["gram", "hessian"])
def test_one_example_has_no_error_and_is_refused(name):
    with pytest.raises(InputError, match="0 or at least 2"):
        Settings(**{name: 1})  # pyright: ignore
    assert getattr(Settings(), name) == 0

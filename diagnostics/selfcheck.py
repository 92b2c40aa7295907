"""``mergebound selfcheck``: whether the installation works and its numbers are right, in seconds, a line a check.

Every check holds a number of the toolkit against one that follows without it, from a closed form or by counting. They
are few and quick; ``make test`` is the whole.
"""

from __future__ import annotations

import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bounds import distillation, ntk
from bounds.autodiff import functional
from bounds.certificates import held_out
from bounds.linearize import linearize
from bounds.pac_bayes import gaussian_kl, kl_inverse
from diagnostics.folder import read_report
from diagnostics.from_python import report
from merging import merge, suites
from merging.artifact import load, save
from merging.commands import console, options, plain, run
from merging.suites import Suite, toy

TOLERANCE = 1e-9
"""Relative to numbers of size 1 and above: what float64 loses in these checks is a thousandth of it."""


@dataclass(frozen=True)
class Found:
    """What a check has found: a number, the one it must be, or with ``below`` the one it must stay below."""

    value: float
    expected: float
    below: bool = False

    @property
    def right(self) -> bool:
        """Whether the number is as it must be; one that is not finite never is."""
        if self.below:
            return self.value < self.expected
        return abs(self.value - self.expected) <= TOLERANCE * max(1.0, abs(self.expected))

    def __str__(self) -> str:
        """Return the comparison in words."""
        return f"{self.value:.6g}, expected {'below ' if self.below else ''}{self.expected:.6g}"


def average() -> Found:
    """Average toy, and take the largest difference to the mean of its experts in NumPy."""
    suite = toy.build()
    got = merge("average", suite).merged
    experts = [suite.task_vectors.expert(index) for index in range(len(suite.tasks))]
    means = {name: np.mean([expert[name].numpy() for expert in experts], axis=0) for name in got}
    return Found(max(float(np.abs(got[name].numpy() - means[name]).max()) for name in got), 0.0)


def every_expert_kept() -> Found:
    """Merge toy at scale 1, and take the largest difference to the scores of each expert on its own task."""
    suite = toy.build()
    got, worst = merge("task_arithmetic", suite, scale=1.0).merged, 0.0
    for index, task in enumerate(suite.tasks):
        scores = (task.forward(params, task.test.inputs) for params in (got, suite.task_vectors.expert(index)))
        worst = max(worst, float(torch.sub(*scores).abs().max()))
    return Found(worst, 0.0)


def learning() -> Found:
    """Learn on toy, and compare the KL to the teachers with that of plain averaging."""
    suite = toy.build(overlap=0.3)
    learned, mean = merge("samerging", suite, examples=24).merged, merge("average", suite).merged
    return Found(_divergence(suite, learned), _divergence(suite, mean), below=True)


def _divergence(suite: Suite, params: Mapping[str, torch.Tensor]) -> float:
    """Mean KL(expert || merge) over tasks and calibration inputs, in nats, written out in NumPy."""

    def softmax(scores: torch.Tensor) -> np.ndarray:
        shifted = np.exp(scores.numpy() - scores.numpy().max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    means = []
    for index, task in enumerate(suite.tasks):
        inputs = task.calibration.inputs
        p, q = (softmax(task.forward(theta, inputs)) for theta in (suite.task_vectors.expert(index), params))
        means.append(float((p * np.log(p / q)).sum(axis=1).mean()))
    return float(np.mean(means))


def artifact() -> Found:
    """Write an artifact and read it again, and count the numbers that differ."""
    made = merge("average", toy.build())
    with tempfile.TemporaryDirectory() as folder:
        save(made, Path(folder) / "out.pt")
        read = load(Path(folder) / "out.pt")
    return Found(sum(float((read.merged[name] != value).sum()) for name, value in made.merged.items()), 0.0)


def kernel() -> Found:
    """Take the trace of the kernel of scores that are linear in x, at x = (3, 4)."""
    forward, params = functional(torch.nn.Linear(2, 3, bias=False, dtype=torch.float64))
    inputs = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    return Found(float(ntk.trace(forward, params, inputs, centred=False).values.sum()), 3 * 25.0)


def linearisation() -> Found:
    """Linearise θ² at 3 and evaluate it at 5."""
    at = {name: torch.full((1, 1), value, dtype=torch.float64) for name, value in (("three", 3.0), ("five", 5.0))}
    forward = linearize(lambda params, inputs: params["theta"] ** 2, {"theta": at["three"]})
    return Found(float(forward({"theta": at["five"]}, torch.zeros(1, 1))), 21.0)


def divergence() -> Found:
    """Take KL(p ‖ q) of p = (.8, .2) and q = (.5, .5) from scores."""
    p, q = (torch.tensor([values], dtype=torch.float64).log() for values in ((0.8, 0.2), (0.5, 0.5)))
    return Found(float(distillation.kl(p, q)), 0.8 * math.log(1.6) + 0.2 * math.log(0.4))


def complexity() -> Found:
    """Take the KL of Gaussians that are two standard deviations apart."""
    return Found(gaussian_kl([4.0], [1.0]), 2.0)


def inverse() -> Found:
    """Invert kl(.1 ‖ ·) at .02 nats, and put the result back."""
    q = float(kl_inverse(0.1, 0.02))
    return Found(0.1 * math.log(0.1 / q) + 0.9 * math.log(0.9 / (1 - q)), 0.02)


def certificate() -> Found:
    """Certify no error among 100 examples at δ = .05."""
    return Found(held_out(0, 100, 0.05).value, 1 - 0.05**0.01)


def report_file() -> Found:
    """Report a merge of toy, and compare the error in report.json with a count of its test examples."""
    suite = toy.build(overlap=0.3)
    made = merge("average", suite)
    with tempfile.TemporaryDirectory() as folder:
        report(made, suite, sections=("accuracy", "certificates")).save(Path(folder) / "report")
        read = read_report(Path(folder) / "report" / "report.json")
    wrong = []
    for task in suite.tasks:
        chosen = task.forward(made.merged, task.test.inputs).numpy().argmax(axis=1)
        assert task.test.labels is not None
        wrong.append(np.mean(chosen != task.test.labels.numpy()))
    return Found(read.merges[0].accuracy.error.value, float(np.mean(wrong)))


def shipped() -> Found:
    """Load the shipped suite mini8, whose files have a sha256, and count the finite numbers of its average."""
    suite = suites.load("mini8")
    got = merge("average", suite).merged
    return Found(
        sum(float(torch.isfinite(value).sum()) for value in got.values()), sum(v.numel() for v in got.values())
    )


CHECKS: Mapping[str, Callable[[], Found]] = {
    "plain averaging is the mean of the experts (largest difference)": average,
    "experts that cannot interfere keep their scores (largest difference)": every_expert_kept,
    "SAMerging comes closer to its teachers than plain averaging (KL, nats)": learning,
    "an artifact that is read again is the one written (numbers that differ)": artifact,
    "the kernel of linear scores has the trace C ‖x‖²": kernel,
    "the linearisation of θ² at 3, taken at 5, is 9 + 6·2": linearisation,
    "KL((.8, .2) ‖ (.5, .5)) is .8 ln 1.6 + .2 ln .4": divergence,
    "Gaussians two standard deviations apart have a KL of 2 nats": complexity,
    "kl(.1 ‖ q) is .02 at the largest q where it is at most that": inverse,
    "certificate (9) of no error in 100 at δ = .05 is 1 - .05^(1/100)": certificate,
    "the error in report.json is that of counting": report_file,
    "the suite mini8 is whole (sha256), its average finite (numbers)": shipped,
}
"""What must hold -> what looks whether it does."""


@dataclass(frozen=True)
class Command:
    """Check in seconds that the installation works and its numbers are right; exit with 1 if a check fails."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 all right, 1 a check failed, 2 bad input)."""
    return run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    options(Command, arguments, "mergebound selfcheck")
    torch.set_num_threads(1)
    output, started = console(), time.perf_counter()
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}, NumPy {np.__version__}"
    output.print(plain(f"{versions}, {platform.machine()}"), soft_wrap=True)
    failed = 0
    for what, check in CHECKS.items():
        right, found = checked(check)
        failed += not right
        line = f"{'ok    ' if right else 'FAILED'}  {what}: {found}"
        output.print(plain(line), soft_wrap=True, highlight=False)
    seconds = time.perf_counter() - started
    verdict = f"{failed} of {len(CHECKS)} checks failed" if failed else f"all {len(CHECKS)} checks are right"
    output.print(f"{verdict}, {seconds:.1f} s", highlight=False)
    return 1 if failed else 0


def checked(check: Callable[[], Found]) -> tuple[bool, str]:
    """Run a check; return whether it is right, and what it found. Whatever goes wrong in it is its failure alone."""
    try:
        found = check()
    except Exception as error:
        return False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return found.right, str(found)


if __name__ == "__main__":
    sys.exit(main())

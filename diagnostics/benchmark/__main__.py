"""Speed and memory of the toolkit, as ratios that do not depend on the machine.

``python -m diagnostics.benchmark bounds`` measures the products of docs/theory.md's kernel terms on randomly
initialised CLIP towers, ``... merge`` a step of a learned merge against the plain passes of its network,
``... stream`` what the machine streams and what of it the merge's two maps reach, ``... memory`` a step's memory with
mapped task vectors against the number of tasks, ``... closed_form`` the seconds and memory of merges in closed form,
from files to a file, ``... files`` those of the commands from a suite file to an exported folder, beside mergekit and
FusionBench where these are installed; ``... processes``, under torchrun, a step on several processes, and ``... plan``
what more of them would send and read, ``... report`` passes, seconds, memory and cache of every section of a report on
experts of real size, ``... tokens`` the loss on scores at every position.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps

from bounds.types import meant, refuse
from diagnostics.benchmark import bounds as benchmark_bounds
from diagnostics.benchmark import closed_form as benchmark_closed_form
from diagnostics.benchmark import files as benchmark_files
from diagnostics.benchmark import memory as benchmark_memory
from diagnostics.benchmark import merge as benchmark_merge
from diagnostics.benchmark import processes as benchmark_processes
from diagnostics.benchmark import report as benchmark_report
from diagnostics.benchmark import stream as benchmark_stream
from diagnostics.benchmark import tokens as benchmark_tokens
from merging.commands import options, run

_NAME = "mergebound benchmark"
BENCHMARKS: Mapping[str, Callable[..., None]] = {
    "bounds": benchmark_bounds.measure,
    "merge": benchmark_merge.measure,
    "stream": benchmark_stream.measure,
    "memory": benchmark_memory.measure,
    "closed_form": benchmark_closed_form.measure,
    "files": benchmark_files.measure,
    "processes": benchmark_processes.measure,
    "plan": benchmark_processes.plan,
    "report": benchmark_report.measure,
    "tokens": benchmark_tokens.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (0 done, 2 bad input)."""
    return run(lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> None:
    name, *rest = arguments or [""]
    if name in ("-h", "--help"):
        lines = [f"  {known:11}  {(measure.__doc__ or '').splitlines()[0]}" for known, measure in BENCHMARKS.items()]
        print("\n".join([f"usage: {_NAME} BENCHMARK [--help]", "", *lines]))
        return
    measure = BENCHMARKS.get(name.replace("-", "_"))
    if measure is None:
        got, cure = repr(name) if name else "nothing", meant(name, BENCHMARKS, f"see {_NAME} --help")
        refuse("benchmark", expected=" or ".join(BENCHMARKS), got=got, cure=cure)
    later = wraps(measure)(lambda **given: partial(measure, **given))  # tyro calls what it reads options for
    options(later, rest, f"{_NAME} {name}")()


if __name__ == "__main__":
    sys.exit(main())

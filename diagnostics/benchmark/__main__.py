"""Speed and memory of the toolkit, as ratios that do not depend on the machine.

``python -m diagnostics.benchmark bounds`` measures the products of docs/theory.md's kernel terms on randomly
initialised CLIP towers, ``... merge`` a step of a learned merge against the plain passes of its network,
``... memory`` its memory with mapped task vectors against the number of tasks, ``... closed_form`` the seconds and
memory of merges in closed form, from files to a file, ``... files`` those of the commands from a suite file to an
exported folder, beside mergekit and FusionBench where these are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tyro.extras import SubcommandApp

from diagnostics.benchmark import bounds as benchmark_bounds
from diagnostics.benchmark import closed_form as benchmark_closed_form
from diagnostics.benchmark import files as benchmark_files
from diagnostics.benchmark import merge as benchmark_merge
from merging.commands import run

app = SubcommandApp()
app.command(name="bounds")(benchmark_bounds.measure)
app.command(name="merge")(benchmark_merge.measure)
app.command(name="memory")(benchmark_merge.memory)
app.command(name="closed_form")(benchmark_closed_form.measure)
app.command(name="files")(benchmark_files.measure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status (0 done, 2 bad input)."""
    return run(lambda: app.cli(prog="python -m diagnostics.benchmark", description="Speed and memory.", args=arguments))


if __name__ == "__main__":
    sys.exit(main())

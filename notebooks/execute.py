"""Run the notebooks: the percent script is the source, the .ipynb beside it the same cells with their outputs.

``python -m notebooks.execute [01 02 ...]`` writes the .ipynb of the named scripts (default: all). The file holds
nothing that changes from run to run: no time stamps, no random cell identifiers.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode, v4

FOLDER = Path(__file__).resolve().parent
TIME_LIMIT = 90
"""Seconds one notebook may take."""
STRICT = """import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module="ipykernel")  # raised by its own shutdown
"""
"""Run in the fresh kernel before the first cell, and not kept."""


def scripts() -> list[Path]:
    """Return the notebooks' scripts in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def read(script: Path) -> NotebookNode:
    """Return the cells of a script as a notebook without outputs, with identifiers that say their place.

    Raises:
        OSError: there is no such script.
    """
    cells = jupytext.read(script).cells
    for index, cell in enumerate(cells):
        cell["id"], cell["metadata"] = f"cell-{index:02d}", {}
    metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return v4.new_notebook(cells=cells, metadata=metadata)


def execute(script: Path, time_limit: float = TIME_LIMIT) -> NotebookNode:
    """Run a script's cells in a fresh kernel with one thread and warnings as errors; return them with outputs.

    Raises:
        CellExecutionError: a cell raised, an assertion included.
        TimeoutError: the notebook took longer than ``time_limit`` seconds.
    """
    notebook = read(script)
    notebook.cells.insert(0, v4.new_code_cell(STRICT))
    deadline = time.monotonic() + time_limit
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(script.parent)}},
        timeout_func=lambda cell: max(1, math.ceil(deadline - time.monotonic())),
        record_timing=False,
        coalesce_streams=True,
    )
    path = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as profile:  # no settings or history of whoever runs this
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "IPYTHONDIR": profile}
        environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        client.execute(env=environment)
    del notebook.cells[0]
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell["execution_count"] = number
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                output["execution_count"] = number
    notebook["metadata"] = read(script).metadata  # the kernel adds its version
    return notebook


def main() -> None:
    """Write the .ipynb of the scripts whose names begin with one of the arguments."""
    wanted = tuple(sys.argv[1:]) or ("",)
    chosen = [script for script in scripts() if script.name.startswith(wanted)]
    if not chosen:
        sys.exit(f"notebook: expected one of {[s.stem for s in scripts()]}; got {sys.argv[1:]}; give its number")
    for script in chosen:
        nbformat.write(execute(script), script.with_suffix(".ipynb"))
        print(script.with_suffix(".ipynb").name)


if __name__ == "__main__":
    main()

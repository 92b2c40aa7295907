"""The scripts of examples/, run as a user runs them, with less of everything."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(script: str, *arguments: str, folder: Path) -> str:
    """Run a script in a folder of its own; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MERGEBOUND_CACHE": str(folder / "cache")}
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_resnets_with_batch_normalisation(tmp_path):
    shown = run("resnet_batchnorm.py", "--steps", "3", "--images", "40", folder=tmp_path)
    pairs = re.findall(r"own test accuracy ([\d.]+) %; the report's ([\d.]+) %", shown)
    assert len(pairs) == 2
    assert all(own == reported for own, reported in pairs)
    assert shown.count("average, running statistics: ") == 4

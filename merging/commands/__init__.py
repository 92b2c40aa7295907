"""The commands of ``python -m merging``, one file each, and what every command of the toolkit shares."""

from merging.commands.options import one_line, options
from merging.commands.tables import TableConsole
from merging.commands.terminal import console, plain, run, stage, track, write_json

__all__ = ["TableConsole", "console", "one_line", "options", "plain", "run", "stage", "track", "write_json"]

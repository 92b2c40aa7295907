"""The commands of ``python -m merging``, one file each, and what every command of the toolkit shares."""

from merging.commands.terminal import console, plain, run, track, write_json

__all__ = ["console", "plain", "run", "track", "write_json"]

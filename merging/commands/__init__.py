"""The commands of ``python -m merging``, one file each, and what every command of the toolkit shares."""

from merging.commands.terminal import console, run, track

__all__ = ["console", "run", "track"]

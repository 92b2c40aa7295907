"""``python -m merging``: merge a suite's experts; ``list`` and ``compare`` are its other commands."""

import sys

from merging.commands.merge import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m diagnostics.study coverage``."""

import sys

from diagnostics.study.coverage import main

if __name__ == "__main__":
    sys.exit(main())

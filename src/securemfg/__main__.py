"""`python -m securemfg`."""

from __future__ import annotations

import sys

from securemfg.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m s2a_bench.run CELL.json OUTPUT`` runs one cell; the code is in ``s2a_bench.cells.run``."""

from __future__ import annotations

import sys

from s2a_bench.cells.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m s2a_bench.device_peak`` measures one step on a GPU; the code is in ``s2a_bench.cells.device_peak``."""

from __future__ import annotations

import sys

from s2a_bench.cells.device_peak import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m s2a_bench`` is ``s2a-bench``."""

from __future__ import annotations

import sys

from s2a_bench.cli.main import main

sys.exit(main())

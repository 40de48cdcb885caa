"""``python -m s2a_bench.run CELL.json OUTPUT`` runs one cell; the code is in ``s2a_bench.cells.run``."""

from __future__ import annotations

import sys
import types
from typing import Any

from s2a_bench.cells.run import identify, main, run

__all__ = ["identify", "main", "run"]


class _CallableModule(types.ModuleType):
    """This module, which can be called as ``s2a_bench.api.run``.

    ``s2a_bench.run`` is a function and, for scripts that use it, this module. Once somebody has imported the module,
    Python binds the name to it, and ``s2a_bench.run(cell)`` must work all the same.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from s2a_bench.api import run as run_cell

        return run_cell(*arguments, **options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
sys.modules[__name__].__class__ = _CallableModule

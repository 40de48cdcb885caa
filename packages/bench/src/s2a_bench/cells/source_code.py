"""Identity of the source code that decides a training: checkpoints and cached features of other code are not used.

It covers the two libraries, and of the bench what a cell runs through. Reports, command line, tracking and sweeps pass
cells on and show their records; what prepares a dataset or pretrains a backbone is known by the content it has made.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

_PACKAGES = ("s2a", "s2a_baselines", "s2a_bench")

_BENCH = ("config.py", "cells/", "data/")
"""What of ``s2a_bench`` decides a training; a new module in these folders counts until it is left out below."""

_BENCH_LEFT_OUT = (
    "cells/records_file.py",
    "cells/device_peak.py",
    "cells/estimate.py",
    "cells/pretrain.py",
    "cells/recipes.py",
    "data/download.py",
    "data/http.py",
    "data/prepare.py",
    "data/readers/",
    "data/splits.py",
    "data/synthetic/",
    "data/verify.py",
)
"""Modules that no cell runs through, and recipes, which are part of a cell's config."""


def decides_training(package: str, name: str) -> bool:
    """Whether a source file is part of the identity.

    Args:
        package: One of the three packages.
        name: Path of the file in the package, with ``/``.
    """
    return package != "s2a_bench" or (name.startswith(_BENCH) and not name.startswith(_BENCH_LEFT_OUT))


def source_id(folders: Mapping[str, Path]) -> str:
    """16 hex digits of the deciding source files, their names and contents.

    Args:
        folders: Package name to its folder.
    """
    digest = hashlib.sha256()
    for package, folder in sorted(folders.items()):
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            if decides_training(package, name):
                digest.update(f"{package}/{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def code_id(module: str = "s2a") -> str:
    """16 hex digits of the source files that decide what a training in this process does.

    Args:
        module: Of the method; if it comes from another package, its file counts too.
    """
    own = getattr(sys.modules.get(module), "__file__", None)
    known = _installed_source_id()
    if module.partition(".")[0] in _PACKAGES or own is None:
        return known
    return hashlib.sha256(known.encode() + Path(own).read_bytes()).hexdigest()[:16]


@functools.cache
def _installed_source_id() -> str:
    return source_id({name: Path(str(importlib.import_module(name).__file__)).parent for name in _PACKAGES})

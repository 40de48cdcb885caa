"""Paths of an archive's members: in one form, and with the links among them followed."""

from __future__ import annotations

import bisect
import posixpath
from collections.abc import Mapping
from pathlib import Path

from s2a_bench.errors import InputError

_MOST_STEPS = 40
"""Links that lead from one to the next, as many as Linux follows."""


def is_hidden(name: str) -> bool:
    """Whether a path is hidden, or one of macOS's ``__MACOSX`` copies."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def clean_path(name: str, archive: Path) -> str:
    """A member's path without a leading ``/``, ``.`` and empty parts.

    Raises:
        InputError: It has ``..`` in it.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or not parts:
        shown = f"{name[:80]}..." if len(name) > 80 else name
        raise InputError(
            f"{archive} holds a file {shown!r}, whose path leads out of the archive; get it from its makers, or "
            "extract it yourself and give the folder."
        )
    return "/".join(parts)


def link_target(name: str, target: str) -> str | None:
    """The path to which a symbolic link ``name`` leads (``""``: the top); ``None``: out of the archive."""
    if target.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if path == ".." or path.startswith("../"):
        return None
    return "" if path == "." else path


def find_targets(files: Mapping[str, object], links: Mapping[str, str | None]) -> dict[str, str]:
    """The file to which each link leads; ``""``: none.

    A link to a folder gives a link to each file in it, unless it leads to a folder that it lies in, which would repeat
    without end. Links within a linked folder are followed where they lie only.

    Args:
        files: Their paths are the keys.
        links: Path of a link -> path of its target from the top; ``None``: it leads out of the archive.
    """
    ordered = sorted(files)
    found: dict[str, str] = {}
    for name, first in links.items():
        target = _follow(first, links)
        if target is not None and target in files:
            found[name] = target
            continue
        if target is not None and (not target or name.startswith(f"{target}/")):
            continue  # A loop: what it leads to is listed anyhow.
        inside = 0
        if target is not None:
            start = f"{target}/"
            for path in ordered[bisect.bisect_left(ordered, start) :]:
                if not path.startswith(start):
                    break
                inside += 1
                found.setdefault(f"{name}/{path[len(start) :]}", path)
        if not inside:
            found[name] = ""
    return {name: target for name, target in found.items() if name not in files}


def _follow(path: str | None, links: Mapping[str, str | None]) -> str | None:
    """A path without links in it; ``None``: it leads out of the archive, or in circles."""
    for _ in range(_MOST_STEPS):
        if path is None:
            return None
        parts = path.split("/")
        for k in range(1, len(parts) + 1):
            head = "/".join(parts[:k])
            if head in links:
                target = links[head]
                path = None if target is None else "/".join([*([target] if target else []), *parts[k:]])
                break
        else:
            return path
    return None

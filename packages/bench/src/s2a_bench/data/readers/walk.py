"""Lists the files of a folder, each place once however links lead through it."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path

from s2a_bench.data.images import is_image
from s2a_bench.errors import InputError


def path_exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name that no file can have, such as one that is too long, is none."""
    with contextlib.suppress(OSError, ValueError):
        return path.exists()
    return False


def list_files(folder: Path, depth: int | None = None) -> list[Path]:
    """The files below a folder, without hidden folders, sorted.

    Links to files are files. A link to a folder is followed, but not to one that it lies in, which would go round in
    circles, and each link is followed once: first everything is listed where it really lies, then what links lead to.
    So the cost grows with the number of files and links and not with that of the ways through them. Broken links and
    pipes that are called like an image are listed, for they would be lost without a word.

    Args:
        folder: Where to start.
        depth: How many levels; ``None``: all.

    Raises:
        InputError: A folder cannot be read.
    """
    above = {_key(parent) for parent in (folder.resolve(), *folder.resolve().parents)}
    found: list[Path] = []
    links: list[tuple[Path, frozenset[tuple[int, int]], int]] = [(folder, frozenset(above), 0)]
    seen: set[tuple[tuple[int, int], str]] = set()
    while links:
        start, ancestors, level = links.pop(0)
        todo = [(start, ancestors, level)]
        while todo:
            place, inside, level = todo.pop()
            own = _key(place)
            for path, kind in _list_folder(place):
                if not stat.S_ISDIR(kind):
                    if stat.S_ISREG(kind) or is_image(path.name):
                        found.append(path)
                elif not path.name.startswith(".") and (depth is None or level + 1 < depth):
                    key = _key(path)
                    if not path.is_symlink():
                        todo.append((path, inside | {key}, level + 1))
                    elif key not in inside and (own, path.name) not in seen:
                        seen.add((own, path.name))
                        links.append((path, inside | {key}, level + 1))
    return sorted(found)


def _list_folder(folder: Path) -> Iterator[tuple[Path, int]]:
    """What lies in a folder, with its kind as ``stat`` tells it; 0 for a broken link."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error
    for path in paths:
        try:
            yield path, path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            yield path, 0
        except OSError as error:
            if path.is_symlink():  # It leads in circles, or somewhere that may not be looked at.
                yield path, 0
            else:
                raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


def _key(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino

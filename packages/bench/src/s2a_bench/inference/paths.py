"""Which images are meant by files, folders, patterns and lists of names. Torch-free."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from s2a_bench.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from s2a_bench.data.readers.walk import list_files, path_exists
from s2a_bench.errors import InputError, Mistakes

STDIN = "-"
"""Stands for the names on standard input."""

FilePath = str | os.PathLike[str]


def find_images(given: Sequence[FilePath], listed: Iterable[str] = ()) -> list[str]:
    """Paths of images in the order in which they are named, each file once.

    A file is taken whatever it is called; of a folder everything below it that has the suffix of an image, sorted, but
    no hidden files and folders. What is neither and has one of ``*?[`` is a pattern, ``**`` for any folders.

    Args:
        given: Files, folders, patterns; ``"-"`` where the names of ``listed`` belong.
        listed: Names of files or folders, as they are, for example of standard input. One that does not exist is kept:
            whoever reads the images says so.

    Raises:
        InputError: What of ``given`` does not exist or has no image, all of it.
    """
    mistakes = Mistakes()
    found: list[str] = []
    for each in given:
        if each == STDIN:
            found += [path for name in listed for path in _named(name) or [name]]
        else:
            with mistakes.collecting():
                found += _expanded(os.fsdecode(each))
    mistakes.raise_all()
    once: dict[Path, str] = {}
    for path in found:
        once.setdefault(_place(path), path)
    return list(once.values())


def _place(path: str) -> Path:
    """The same for all names of a file, but for links to it: they are several, and stay."""
    try:
        return Path(path).parent.resolve() / Path(path).name
    except (OSError, ValueError):  # A name that no file can have, from a list: whoever reads it says so.
        return Path(path)


def read_names(stream: BinaryIO, null: bool = False) -> list[str]:
    """Names in a list, one a line, or ended by a zero byte each (``find -print0``); bytes that are no text are kept.

    Args:
        stream: The list.
        null: Whether zero bytes end the names, which may then hold line ends.
    """
    data = stream.read().removeprefix(b"\xef\xbb\xbf")
    names = data.split(b"\0") if null else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]


def _expanded(name: str) -> list[str]:
    if path_exists(Path(name)):
        found = _named(name)
        if not found:
            raise InputError(f"Folder {name} has no images ({', '.join(IMAGE_SUFFIXES)}); give another.")
        return found
    if any(mark in name for mark in "*?["):
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  Path.glob takes no absolute patterns
        found = [path for match in matches for path in _named(match)]
        if not found:
            raise InputError(f"No image matches {name}; check the pattern.")
        return found
    raise InputError(f"There is no file or folder {name}; check the path.")


def _named(name: str) -> list[str]:
    """The file itself, or the images below a folder."""
    path = Path(name)
    if not path_exists(path) or not path.is_dir():
        return [name] if path_exists(path) else []
    return list(_below(path))


def _below(folder: Path) -> Iterator[str]:
    """Images of any format: those that are not read here are not passed over, but named when they are opened."""
    suffixes = IMAGE_SUFFIXES + UNREAD_SUFFIXES
    for path in list_files(folder):
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
        if not hidden and path.name.lower().endswith(suffixes):
            yield str(path)

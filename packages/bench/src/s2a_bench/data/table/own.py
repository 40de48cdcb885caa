"""Rows of the user's own datasets (suite ``own``): made from the manifest of a folder under the data root."""

from __future__ import annotations

import functools
import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from s2a_bench.data.folder import MANIFEST, read_manifest
from s2a_bench.data.images import LOSSY_SUFFIXES
from s2a_bench.data.table.rows import TABLE
from s2a_bench.data.table.types import PLAIN_LISTS, Counts, Dataset
from s2a_bench.errors import InputError

OWN = "own"
"""Name of the suite, and of the group that its datasets form in tables."""

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What the name of an own dataset looks like: it is the name of its folder."""

TAKEN_NAMES = frozenset({OWN, *(name for e in TABLE for name in (e.name, *e.aliases, e.suite))})
"""Names, aliases and suites of the table: none of them can be an own dataset's."""


def how_to_prepare(name: str = "NAME", root: Path | str | None = None) -> str:
    """The command that makes an own dataset: ``s2a-bench data prepare NAME --from DIR --data-dir DIR``."""
    return f"s2a-bench data prepare {name} --from DIR --data-dir {shlex.quote(str(root or 'DATA'))}"


def own_datasets(root: Path | str | None) -> list[str]:
    """Names of the own datasets prepared under a data root, sorted; none without a root.

    One whose manifest cannot be read is among them: ``own_dataset`` then says what is wrong.

    Raises:
        InputError: The root cannot be read.
    """
    if root is None or not Path(root).is_dir():
        return []
    try:
        return sorted(folder.name for folder in Path(root).iterdir() if _is_own(folder))
    except OSError as error:
        raise InputError(f"Data folder {root} cannot be read ({error.strerror or error}); pass another one.") from error


def check_class_names(names: Sequence[str], where: object) -> None:
    """Refuses class names that an adapter folder, a page or a terminal could not hold, before anything is trained.

    Args:
        names: Of the classes.
        where: Whose they are, in the sentence.

    Raises:
        InputError: One is blank, is no UTF-8 text, or has control characters other than tabs and line breaks.
    """
    bad = [name for name in names if not name.strip() or any(map(_is_unwritable, name))]
    if bad:
        shown = ", ".join(map(repr, bad[:3])) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise InputError(
            f"{where} has {'classes' if len(bad) > 1 else 'a class'} whose name is blank, no UTF-8 text, or has "
            f"control characters in it ({shown}); rename {'them' if len(bad) > 1 else 'it'}."
        )


def _is_unwritable(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind == "Cs" or (kind == "Cc" and character not in "\t\n\r")


def own_dataset(name: str, root: Path | str | None) -> Dataset:
    """The row of an own dataset.

    Args:
        name: Of its folder under the root.
        root: The data root.

    Raises:
        InputError: No root, no such folder, or one that was not prepared as an own dataset.
    """
    fix = f"run `{how_to_prepare(name if NAME_PATTERN.fullmatch(name) else 'NAME', root)}`"
    for entry in TABLE:
        if name in (entry.name, *entry.aliases):
            raise InputError(
                f"{name!r} is a dataset of suite {entry.suite!r}, not an own one; use --suite {entry.suite}."
            )
    if name in TAKEN_NAMES:
        raise InputError(f"{name!r} is a suite and cannot name an own dataset; give it another name.")
    if not NAME_PATTERN.fullmatch(name):
        raise InputError(
            f"{name!r} is no name of an own dataset: 1 to 64 letters, digits, '.', '_' and '-', a letter or digit "
            f"first; {fix}."
        )
    if root is None:
        raise InputError(
            f"Own dataset {name!r} was asked for but no data folder was given; pass --data-dir, and to make it, {fix}."
        )
    folder = Path(root) / name
    try:
        row = _read_row(folder)
    except OSError as error:
        there = own_datasets(root)
        have = f"it has {', '.join(there[:20])}" if there else "it has no own dataset"
        raise InputError(f"Own dataset {name!r} was not found in {root} ({have}); to make it, {fix}.") from error
    if row is None:
        raise InputError(f"{folder} was not prepared as an own dataset (its {MANIFEST} has no entry `own`); {fix}.")
    return row


def _read_row(folder: Path) -> Dataset | None:
    """The row of a folder; ``None``: its manifest is not an own dataset's.

    Raises:
        OSError: There is no manifest.
        InputError: It is broken.
    """
    stat = (folder / MANIFEST).stat()
    return _make_row(folder, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@functools.lru_cache(maxsize=64)
def _make_row(folder: Path, *_version: int) -> Dataset | None:
    """The row made from a folder's manifest, read again when the file has changed."""
    manifest = read_manifest(folder)
    again = f"prepare it again: `{how_to_prepare(folder.name, folder.parent)}`"
    if manifest is None or manifest.own is None:
        return None
    if missing := [name for name in PLAIN_LISTS if name not in manifest.counts]:
        raise InputError(f"{folder / MANIFEST} has no count of list {missing[0]!r}; {again}.")
    if len(manifest.classes) < 2:
        raise InputError(f"{folder / MANIFEST} names {len(manifest.classes)} classes, two are needed; {again}.")
    check_class_names(manifest.classes, folder)
    return Dataset(
        name=folder.name,
        suite=OWN,
        group=OWN,
        classes=len(manifest.classes),
        counts=Counts(*(manifest.counts[name] for name in PLAIN_LISTS)),
        source=manifest.source,
        licence="yours",
        where="your own images",
        encoding="jpeg" if any(path.lower().endswith(LOSSY_SUFFIXES) for path in manifest.files) else "lossless",
        class_names=manifest.classes,
    )


def _is_own(folder: Path) -> bool:
    lists = any((folder / f"{name}.txt").is_file() for name in PLAIN_LISTS)
    if folder.name in TAKEN_NAMES or not NAME_PATTERN.fullmatch(folder.name) or not lists:
        return False
    try:
        return _read_row(folder) is not None
    except FileNotFoundError:
        return False
    except InputError:
        return True

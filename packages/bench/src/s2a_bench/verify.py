"""Checks a dataset's folder against its manifest and the table: recounts, rehashes, opens every image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from s2a_bench import datasets
from s2a_bench.datasets import Dataset
from s2a_bench.errors import InputError
from s2a_bench.images import decode, is_image
from s2a_bench.layout import (
    LISTS,
    MANIFEST,
    Entry,
    Manifest,
    content_id,
    decode_list,
    locate,
    parse_list,
    read_list_bytes,
    read_manifest,
    sha256,
)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done and of how many (0: not known)."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with a folder.

    Attributes:
        file: File under the dataset's folder, usually a list.
        line: Its line, from 1; ``None`` for the file as a whole.
        what: The sentence.
    """

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        """``file:line: sentence``."""
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.what}"


def verify(name: str, root: Path, progress: Progress | None = None) -> list[Problem]:
    """Everything that is wrong with a dataset's folder; an empty list if nothing is.

    Without a manifest (a folder made by another tool) hashes cannot be compared; the rest is checked all the same.

    Args:
        name: Dataset.
        root: Data root.
        progress: Told about every image.

    Raises:
        InputError: Unknown or embedded dataset, or no folder.
    """
    dataset = datasets.find(name)
    if dataset.embedded:
        raise InputError(f"Dataset {dataset.name!r} is embedded in the package; there is nothing to verify on disk.")
    return verify_folder(dataset, locate(dataset, root), progress)


def verify_folder(dataset: Dataset, folder: Path, progress: Progress | None = None) -> list[Problem]:
    """The same as ``verify`` for a folder anywhere."""
    problems: list[Problem] = []
    manifest: Manifest | None = None
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        problems.append(Problem(MANIFEST, None, str(error)))
    lists: dict[str, list[Entry]] = {}
    list_hashes: dict[str, str] = {}
    for name in LISTS:
        lists[name] = _check_list(folder, name, dataset, manifest, problems, list_hashes)
    hashes = _check_images(folder, lists, manifest, problems, progress)
    _check_splits(lists, hashes, problems)
    if manifest is not None:
        _check_manifest(folder, dataset, manifest, hashes, problems, list_hashes)
    return problems


def _check_list(
    folder: Path,
    name: str,
    dataset: Dataset,
    manifest: Manifest | None,
    problems: list[Problem],
    list_hashes: dict[str, str],
) -> list[Entry]:
    file = f"{name}.txt"
    entries: dict[str, Entry] = {}
    try:
        data = read_list_bytes(folder, name)
        text = decode_list(data, folder / file)
    except InputError as error:
        problems.append(Problem(file, None, str(error)))
        return []
    list_hashes[file] = sha256(data)
    if manifest is not None and list_hashes[file] != manifest.lists.get(file):
        problems.append(Problem(file, None, "the list is not the one that was prepared (its hash differs)"))
    for item in parse_list(text, dataset.classes):
        if not isinstance(item, Entry):
            problems.append(Problem(file, item[0], item[1]))
        elif item.path in entries:
            problems.append(
                Problem(file, item.line, f"{item.path} is already listed on line {entries[item.path].line}")
            )
        else:
            entries[item.path] = item
    expected = getattr(dataset.counts, name)
    if expected is not None and len(entries) != expected:
        problems.append(Problem(file, None, f"{len(entries)} images, expected {expected}"))
    return list(entries.values())


def _check_images(
    folder: Path,
    lists: dict[str, list[Entry]],
    manifest: Manifest | None,
    problems: list[Problem],
    progress: Progress | None,
) -> dict[str, str]:
    """The sha256 of every image that could be read; opens each once, whatever lists name it."""
    hashes: dict[str, str] = {}
    done: set[str] = set()
    total = len({entry.path for entries in lists.values() for entry in entries})
    for name, entries in lists.items():
        for entry in entries:
            if entry.path in done:
                continue
            done.add(entry.path)
            if progress is not None:
                progress("verifying images", len(done), total)

            known = manifest.files.get(entry.path) if manifest is not None else None
            origin = f" (made from {known.source})" if known is not None else ""

            def report(what: str, file: str = f"{name}.txt", line: int = entry.line) -> None:
                problems.append(Problem(file, line, what))

            try:
                data = (folder / entry.path).read_bytes()
            except OSError as error:
                report(f"{entry.path}{origin} cannot be read ({error.strerror})")
                continue
            hashes[entry.path] = sha256(data)
            if manifest is not None and known is None:
                report(f"{entry.path} is not in the manifest")
            elif known is not None and hashes[entry.path] != known.sha256:
                report(f"{entry.path}{origin} was changed (its hash differs)")
            try:
                decode(data, f"{entry.path}{origin}")
            except InputError as error:
                report(str(error))
    return hashes


def _check_splits(lists: dict[str, list[Entry]], hashes: dict[str, str], problems: list[Problem]) -> None:
    """train800val200 is train800 and val200, and no image is in two of train800, val200 and test, by content."""

    def content(entry: Entry) -> str:
        return hashes.get(entry.path, entry.path)

    home: dict[str, tuple[str, Entry]] = {}
    for name in ("train800", "val200", "test"):
        for entry in lists[name]:
            other, first = home.setdefault(content(entry), (name, entry))
            if other != name:
                what = f"{entry.path} is the same image as {first.path} of {other}.txt line {first.line}"
                problems.append(Problem(f"{name}.txt", entry.line, what))
    parts = {(content(entry), entry.label) for name in ("train800", "val200") for entry in lists[name]}
    both = {(content(entry), entry.label): entry for entry in lists["train800val200"]}
    for key, entry in both.items():
        if key not in parts:
            what = f"{entry.path} with label {entry.label} is in neither train800.txt nor val200.txt"
            problems.append(Problem("train800val200.txt", entry.line, what))
    if missing := len(parts - set(both)):
        problems.append(
            Problem("train800val200.txt", None, f"{missing} images of train800.txt and val200.txt are absent")
        )


def _check_manifest(
    folder: Path,
    dataset: Dataset,
    manifest: Manifest,
    hashes: dict[str, str],
    problems: list[Problem],
    list_hashes: dict[str, str],
) -> None:
    if manifest.dataset != dataset.name:
        problems.append(Problem(MANIFEST, None, f"it describes {manifest.dataset!r}, not {dataset.name!r}"))
    if len(manifest.classes) != dataset.classes:
        problems.append(Problem(MANIFEST, None, f"{len(manifest.classes)} classes, expected {dataset.classes}"))
    stated = content_id(manifest.lists, {path: info.sha256 for path, info in manifest.files.items()})
    if stated != manifest.data_id:
        problems.append(Problem(MANIFEST, None, f"data_id is {manifest.data_id} but its own hashes give {stated}"))
    elif not problems and content_id(list_hashes, hashes) != manifest.data_id:
        problems.append(Problem(MANIFEST, None, f"data_id {manifest.data_id} is not that of the files"))
    for path in sorted(set(manifest.files) - set(hashes)):
        if not any(path in problem.what for problem in problems):
            problems.append(Problem(MANIFEST, None, f"{path} is in the manifest but in no list"))
    on_disk = {path.relative_to(folder).as_posix() for path in (folder / "images").rglob("*") if path.is_file()}
    for path in sorted(on_disk - set(manifest.files)):
        if is_image(path):
            problems.append(Problem(path, None, "the image is on disk but was not prepared"))

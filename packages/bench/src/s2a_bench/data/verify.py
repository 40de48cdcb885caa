"""Checks a dataset's folder against its manifest and the table: recounts, rehashes, opens every image."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from s2a_bench.data.folder import (
    CACHE,
    MANIFEST,
    ListedImage,
    Manifest,
    compute_content_id,
    decode_list,
    find_dataset_folder,
    image_root,
    parse_list,
    read_list_bytes,
    read_manifest,
    read_remembered,
    sha256,
)
from s2a_bench.data.images import describe_conversions, is_image
from s2a_bench.data.labels import find_folder_conflict
from s2a_bench.data.limits import read_file
from s2a_bench.data.other_sets import explain_other_set
from s2a_bench.data.pixel_file import is_earlier_version, open_pixel_file
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.lookup import OWN
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError

Progress = Callable[[str, int, int], None]
"""Progress callback: the step, how many are done, and how many in all (0: not known)."""

_SHOWN_CLASSES = 20
"""Classes without an image that are named; the rest is counted."""

A = TypeVar("A")
B = TypeVar("B")
_Inspected = tuple[str | None, list[tuple[str, bool]]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """An error or a note about a file of a dataset's folder.

    Attributes:
        file: File under the dataset's folder, usually a list.
        line: Its line, from 1; ``None`` for the file as a whole.
        what: The sentence.
        note: Not an error, but worth knowing, e.g. that a grey image is converted to RGB.
    """

    file: str
    line: int | None
    what: str
    note: bool = False

    def __str__(self) -> str:
        """``file:line: sentence``."""
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.what}"


def verify_dataset(name: str, root: Path, progress: Progress | None = None) -> list[Problem]:
    """Lists all errors and notes about a dataset's folder.

    Without a manifest (a folder made by another tool) hashes are compared with those of the first use, if it was used;
    everything else is checked. So are the decoded images of earlier uses, each byte of them.

    Args:
        name: Dataset.
        root: Data root.
        progress: Called after every image.

    Raises:
        InputError: Unknown or embedded dataset, or no folder.
    """
    dataset = datasets.find_dataset(name, root)
    if dataset.embedded:
        raise InputError(f"Dataset {dataset.name!r} is embedded in the package; there is nothing to verify on disk.")
    folder = find_dataset_folder(dataset, root)
    return [*verify_folder(dataset, folder, progress), *_check_caches(folder, progress)]


def verify_folder(
    dataset: Dataset, folder: Path, progress: Progress | None = None, decoded: Collection[str] = ()
) -> list[Problem]:
    """As ``verify_dataset``, for a folder at any path and without its cache.

    Args:
        dataset: The dataset.
        folder: Its folder.
        progress: Called after every image.
        decoded: sha256 of images that this process, or who wrote the manifest, has decoded: they are only hashed.
    """
    problems: list[Problem] = []
    manifest: Manifest | None = None
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        problems.append(Problem(MANIFEST, None, str(error)))
    lists: dict[str, list[ListedImage]] = {}
    list_hashes: dict[str, str] = {}
    for name in dataset.lists:
        lists[name] = _check_list(folder, name, dataset, manifest, problems, list_hashes)
    hashes = _check_images(image_root(folder, manifest), lists, manifest, problems, progress, decoded)
    _check_splits(dataset, lists, hashes, problems)
    _check_labels(dataset, folder, lists, manifest, problems)
    if manifest is None:
        _check_remembered(folder, lists, hashes, problems)
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
) -> list[ListedImage]:
    file = f"{name}.txt"
    entries: dict[str, ListedImage] = {}
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
        if not isinstance(item, ListedImage):
            problems.append(Problem(file, item[0], item[1]))
        elif item.path in entries:
            problems.append(
                Problem(file, item.line, f"{item.path} is already listed on line {entries[item.path].line}")
            )
        else:
            entries[item.path] = item
    expected = dataset.count(name) if manifest is None else manifest.expected(name, dataset)
    if expected is not None and len(entries) != expected:
        problems.append(Problem(file, None, f"{len(entries)} images, expected {expected}"))
    return list(entries.values())


def _check_images(
    root: Path,
    lists: dict[str, list[ListedImage]],
    manifest: Manifest | None,
    problems: list[Problem],
    progress: Progress | None,
    decoded: Collection[str],
) -> dict[str, str]:
    """Checks every listed image once; returns the sha256 of those that could be read."""
    hashes: dict[str, str] = {}
    first = {entry.path: (name, entry) for name, entries in reversed(lists.items()) for entry in reversed(entries)}
    labels: dict[str, int] = {}
    order = list(dict.fromkeys(entry.path for entries in lists.values() for entry in entries))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        looked = map_bounded(threads, lambda path: _inspect_image(root, path, manifest, decoded), order)
        for done, (path, (digest, found)) in enumerate(zip(order, looked, strict=True), start=1):
            if progress is not None:
                progress("verifying images", done, len(order))
            name, entry = first[path]
            if digest is not None:
                hashes[path] = digest
            problems += [Problem(f"{name}.txt", entry.line, what, note) for what, note in found]
    for name, entries in lists.items():
        for entry in entries:
            known = manifest.files.get(entry.path) if manifest is not None else None
            right = known.label if known is not None and known.label is not None else labels.get(entry.path)
            if right is not None and right != entry.label:
                what = f"{entry.path} has label {entry.label} here but is of class {right}"
                problems.append(Problem(f"{name}.txt", entry.line, what))
            labels.setdefault(entry.path, entry.label)
    return hashes


def map_bounded(threads: ThreadPoolExecutor, work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Maps ``work`` over items in threads, in order, with at most 64 submitted at a time to bound memory."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(threads.submit(work, item))
        if len(waiting) >= 64:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _inspect_image(root: Path, path: str, manifest: Manifest | None, decoded: Collection[str]) -> _Inspected:
    """Reads, hashes and, unless that was done, decodes one image.

    Returns:
        Its sha256, ``None`` if it is unreadable, and ``(message, is_note)`` pairs.
    """
    known = manifest.files.get(path) if manifest is not None else None
    origin = f" (made from {known.source})" if known is not None else ""
    try:
        data = read_file(root / path)
    except OSError as error:
        return None, [(f"{path}{origin} cannot be read ({error.strerror})", False)]
    except InputError as error:
        return None, [(str(error), False)]
    digest = sha256(data)
    upright = manifest is not None and manifest.upright
    found: list[tuple[str, bool]] = []
    if manifest is not None and known is None:
        found.append((f"{path} is not in the manifest", False))
    elif known is not None and digest != known.sha256:
        found.append((f"{path}{origin} was changed (its hash differs)", False))
    if digest in decoded:
        return digest, found
    try:
        found += [
            (f"{path}{origin} {remark}", True) for remark in describe_conversions(data, f"{path}{origin}", upright)
        ]
    except InputError as error:
        found.append((str(error), False))
    return digest, found


def _check_splits(
    dataset: Dataset, lists: dict[str, list[ListedImage]], hashes: dict[str, str], problems: list[Problem]
) -> None:
    """Checks that the final list is train plus val, and that train, val and test share no image by path or content.

    Two files of the same content are only a note: some published datasets have duplicates.
    """

    def content(entry: ListedImage) -> str:
        return hashes.get(entry.path, entry.path)

    train, val, both, test = dataset.lists
    home: dict[str, tuple[str, ListedImage]] = {}
    for name in (train, val, test):
        for entry in lists[name]:
            other, first = home.setdefault(content(entry), (name, entry))
            if other != name:
                what = f"{entry.path} is the same image as {first.path} of {other}.txt line {first.line}"
                problems.append(Problem(f"{name}.txt", entry.line, what, note=entry.path != first.path))
    parts = {(content(entry), entry.label) for name in (train, val) for entry in lists[name]}
    together = {(content(entry), entry.label): entry for entry in lists[both]}
    for key, entry in together.items():
        if key not in parts:
            what = f"{entry.path} with label {entry.label} is in neither {train}.txt nor {val}.txt"
            problems.append(Problem(f"{both}.txt", entry.line, what))
    if missing := len(parts - set(together)):
        problems.append(Problem(f"{both}.txt", None, f"{missing} images of {train}.txt and {val}.txt are absent"))


def _check_labels(
    dataset: Dataset,
    folder: Path,
    lists: dict[str, list[ListedImage]],
    manifest: Manifest | None,
    problems: list[Problem],
) -> None:
    """Checks that the labels are this dataset's and those of the class folders; classes without an image are notes."""
    labels = {name: [entry.label for entry in entries] for name, entries in lists.items()}
    if reason := explain_other_set(dataset, folder, manifest, labels):
        stated = manifest is not None and manifest.dataset != dataset.name
        problems.append(Problem(MANIFEST if stated else f"{dataset.lists.test}.txt", None, reason))

    def name_in_source(path: str) -> str:
        known = manifest.files.get(path) if manifest is not None else None
        return known.source if known is not None else path

    images = {name_in_source(entry.path): entry.label for entries in lists.values() for entry in entries}
    # Own images may lie in as many folders as there are classes and yet mean others by them: hospitals, say.
    if dataset.suite != OWN and (conflict := find_folder_conflict(images.items(), dataset.classes)):
        what = f"the labels contradict the class folders: {conflict}"
        problems.append(Problem(f"{dataset.lists.both}.txt", None, what))
    titles = manifest.classes if manifest is not None else ()
    problems += describe_absent_classes(dataset, labels, titles)


def describe_absent_classes(
    dataset: Dataset, labels: Mapping[str, Sequence[int]], titles: Sequence[str] = ()
) -> list[Problem]:
    """Notes of classes that have no image, in all lists together or in the one that is trained on or scored.

    Args:
        dataset: Tells how many classes there are.
        labels: Labels by list.
        titles: Names of the classes, where they are known.
    """
    absent = {name: set(range(dataset.classes)).difference(each) for name, each in labels.items() if each}
    nowhere = set[int]().union(*absent.values()).intersection(*absent.values())
    both, test = dataset.lists.both, dataset.lists.test
    notes = []
    for name, missing, where in (
        (test, nowhere, "in any list"),
        (both, absent.get(both, nowhere) - nowhere, "to train on"),
        (test, absent.get(test, nowhere) - nowhere, "in the test list"),
    ):
        if missing:
            shown = [_class_name(label, titles) for label in sorted(missing)[:_SHOWN_CLASSES]]
            more = f" and {len(missing) - len(shown)} more" if len(missing) > len(shown) else ""
            what = f"{len(missing)} of {dataset.classes} classes have no image {where}: {', '.join(shown)}{more}"
            notes.append(Problem(f"{name}.txt", None, what, note=True))
    return notes


def _class_name(label: int, titles: Sequence[str]) -> str:
    title = titles[label] if label < len(titles) else ""
    return f"{label}" if title in ("", f"{label}", f"class {label}") else f"{label} ({title})"


def _check_remembered(
    folder: Path, lists: dict[str, list[ListedImage]], hashes: dict[str, str], problems: list[Problem]
) -> None:
    """Compares images of a folder without manifest with what they were when they were first used.

    Whoever gives an image another size or time has it hashed anew at the next use; other contents go unnoticed there.
    """
    remembered = read_remembered(folder)
    told: set[str] = set()
    for name, entries in lists.items():
        for entry in entries:
            known = remembered.get(entry.path)
            if known is None or entry.path in told or hashes.get(entry.path, known.sha256) == known.sha256:
                continue
            told.add(entry.path)
            stat = (folder / entry.path).stat()
            if (stat.st_size, stat.st_mtime_ns) == (known.bytes, known.mtime_ns):
                what = (
                    f"{entry.path} was changed: it is not the image that was first used, though its size and time are; "
                    f"bring that back, or delete {folder / CACHE} so that it counts as other data"
                )
                problems.append(Problem(f"{name}.txt", entry.line, what))


def _check_caches(folder: Path, progress: Progress | None) -> list[Problem]:
    """Compares all decoded images under ``.cache`` with their checksums."""
    problems: list[Problem] = []
    files = sorted((folder / CACHE).glob("*.u8"))
    for done, path in enumerate(files):
        if progress is not None:
            progress("checking decoded images, files", done, len(files))
        where = f"{CACHE}/{path.name}"
        again = "the next time they are used, they are made again"
        try:
            cached = open_pixel_file(path)
            if cached is None and is_earlier_version(path):
                what = f"the decoded images are of an earlier version, without checksums; {again}"
                problems.append(Problem(where, None, what, note=True))
            elif cached is None or not cached.is_whole():
                problems.append(Problem(where, None, f"the decoded images are damaged; {again}, or delete the file"))
        except FileNotFoundError:
            continue  # another process has just made it again
        except OSError as error:
            problems.append(Problem(where, None, f"the decoded images cannot be read ({error.strerror or error})"))
    return problems


def _check_manifest(
    folder: Path,
    dataset: Dataset,
    manifest: Manifest,
    hashes: dict[str, str],
    problems: list[Problem],
    list_hashes: dict[str, str],
) -> None:
    if len(manifest.classes) != dataset.classes:
        problems.append(Problem(MANIFEST, None, f"{len(manifest.classes)} classes, expected {dataset.classes}"))
    stated = compute_content_id(manifest.lists, {path: info.sha256 for path, info in manifest.files.items()})
    if stated != manifest.data_id:
        problems.append(Problem(MANIFEST, None, f"data_id is {manifest.data_id} but its own hashes give {stated}"))
    elif not any(not p.note for p in problems) and compute_content_id(list_hashes, hashes) != manifest.data_id:
        problems.append(Problem(MANIFEST, None, f"data_id {manifest.data_id} is not that of the files"))
    told = {problem.what.partition(" ")[0] for problem in problems}
    for path in sorted(set(manifest.files) - set(hashes)):
        if path not in told:
            problems.append(Problem(MANIFEST, None, f"{path} is in the manifest but in no list"))
    if manifest.home:
        return  # The images are used in place: other files in that folder do not matter.
    on_disk = {path.relative_to(folder).as_posix() for path in (folder / "images").rglob("*") if path.is_file()}
    for path in sorted(on_disk - set(manifest.files)):
        if is_image(path):
            problems.append(Problem(path, None, "the image is on disk but was not prepared"))

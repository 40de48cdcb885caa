"""Prepares a download: writes the standard folder of a dataset (see ``folder.py``), completely or not at all.

A temporary folder beside the target is filled, verified, flushed to disk and renamed: a process that is killed leaves
``.<name>.*.partial``, which the next one removes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from s2a_bench.data import splits
from s2a_bench.data.folder import MANIFEST, FileInfo, Manifest, compute_content_id, read_manifest, sha256
from s2a_bench.data.images import IMAGE_SUFFIXES, LOSSY_SUFFIXES
from s2a_bench.data.open_source import (
    OpenedSource,
    Synthetic,
    compute_source_id,
    describe_accepted_sources,
    open_source,
    read_chosen,
)
from s2a_bench.data.readers.walk import path_exists
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.types import Dataset, Preparation
from s2a_bench.data.verify import Problem, Progress, describe_absent_classes, verify_folder
from s2a_bench.errors import InputError
from s2a_bench.files import reserved, sync_folder, write_atomic


def prepare_dataset(
    name: str,
    source: Path,
    root: Path,
    progress: Progress | None = None,
    *,
    split: Path | None = None,
    synthetic: Synthetic = "",
) -> Path:
    """Makes ``<root>/<name>`` from a download.

    The folder is built beside its place, verified, flushed to disk and renamed: it is there whole or not at all.
    Where it is there already, made from the same images and intact, nothing is done but to tell ``progress``.
    A VTAB-1k folder of another tool, and an image folder as large as ImageNet, are used where they lie: the lists and
    the manifest are made, the images are not copied.

    Args:
        name: Dataset with a preparation.
        source: The archive, the folder it extracts to, or a folder that holds either.
        root: Data root; made if need be.
        progress: Called with each step, and with notes, which begin with ``"note: "``.
        split: A published split: CoOp's ``split_zhou_*.json``, or a folder of VPT's ``train.json``, ``val.json`` and
            ``test.json``. One that lies in the source is found by itself.
        synthetic: The source was made up by this package: the folder, and every record, says so. The counts of a
            miniature are its own.

    Returns:
        The dataset's folder.

    Raises:
        InputError: Unknown or embedded dataset, wrong, broken or incomplete source, a folder that exists already or
            is not writable, or another process preparing the same dataset there.
    """
    dataset = datasets.find_dataset(name)
    preparation = _preparation_of(dataset)
    progress = progress or _ignore_progress
    root, source = Path(root), Path(source)
    if not path_exists(source):
        raise InputError(f"Source {source} does not exist; give {describe_accepted_sources(dataset, preparation)}.")
    with reserve_target(dataset.name, root) as target:
        with open_source(dataset, preparation, source, split, synthetic, progress) as opened:
            if opened.source.base is not None and target.exists() and opened.source.base.samefile(target):
                return _adopt_folder(dataset, opened, target, progress)
            if is_taken(target):
                _check_existing(dataset, opened, target, progress)
                return target
            in_place = preparation.in_place or opened.reader == "noah"
            return build_folder(dataset, opened, target, progress, in_place=in_place)


@contextlib.contextmanager
def reserve_target(name: str, root: Path) -> Iterator[Path]:
    """Reserves ``<root>/<name>`` for this process, and removes what a killed one left of it.

    Raises:
        InputError: Another process is preparing it, or the root cannot be written to, also within the block.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with reserved(root / name) as held:
            if not held:
                raise InputError(f"Another process is preparing {name} in {root}; wait for it to end.")
            for stale in root.glob(f".{name}.*.partial"):
                shutil.rmtree(stale)
            yield root / name
    except OSError as error:
        raise InputError(f"Cannot write {name} to {root} ({error}); nothing was prepared.") from error


def is_taken(target: Path) -> bool:
    """Whether there is something at a path that is no empty folder."""
    return target.is_symlink() or (target.exists() and not _is_empty(target))


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _ignore_progress(what: str, done: int, total: int) -> None:
    pass


def _preparation_of(dataset: Dataset) -> Preparation:
    if dataset.preparation is None:
        raise InputError(f"Dataset {dataset.name!r} is embedded in the package; there is nothing to prepare.")
    return dataset.preparation


def _check_existing(dataset: Dataset, opened: OpenedSource, target: Path, progress: Progress) -> None:
    manifest = read_existing(target)
    check_intact(dataset, target, progress)
    hashes = {item.name: sha256(data) for item, data in read_chosen(opened, progress, "comparing with the source")}
    source_id = compute_source_id(opened, hashes)
    if source_id != manifest.source_id or opened.split.split_id != manifest.split_id:
        raise InputError(
            f"{target} was prepared from other images ({manifest.source}, source id {manifest.source_id}, split "
            f"{manifest.split_id}) than {opened.place} holds (source id {source_id}, split {opened.split.split_id}); "
            "delete it or give another data folder."
        )
    progress("already prepared and intact; nothing to do", 1, 1)


def read_existing(target: Path) -> Manifest:
    """The manifest of a folder that is there already.

    Raises:
        InputError: It has none, or a broken one.
    """
    manifest = read_manifest(target)
    if manifest is None:
        raise InputError(f"{target} exists and was not made by this command; move it away or give another data folder.")
    return manifest


def check_intact(dataset: Dataset, target: Path, progress: Progress, decoded: Collection[str] = ()) -> None:
    """Refuses a folder that is there already and damaged; ``decoded`` as in ``verify_folder``.

    Raises:
        InputError: It is.
    """
    if problems := _without_notes(verify_folder(dataset, target, progress, decoded)):
        raise InputError(
            f"{target} exists but is damaged (problems: {len(problems)}, the first: {problems[0]}); "
            "delete it and prepare again."
        )


def _without_notes(problems: Sequence[Problem]) -> list[Problem]:
    return [problem for problem in problems if not problem.note]


def _adopt_folder(dataset: Dataset, opened: OpenedSource, folder: Path, progress: Progress) -> Path:
    """Adds a manifest to a folder of another tool that lies at its place under the data root already."""
    if read_manifest(folder) is not None:
        if problems := _without_notes(verify_folder(dataset, folder, progress)):
            raise InputError(f"{folder} is damaged (problems: {len(problems)}, the first: {problems[0]}); repair it.")
        progress("already prepared and intact; nothing to do", 1, 1)
        return folder
    lists = {f"{name}.txt": (folder / f"{name}.txt").read_bytes() for name in dataset.lists}
    files = {
        item.name: FileInfo(sha256(data), len(data), item.name, item.label)
        for item, data in read_chosen(opened, progress, "hashing the images")
    }
    manifest = _make_manifest(dataset, opened, lists, files, "")
    write_atomic(folder / MANIFEST, manifest.to_json())
    if problems := _without_notes(verify_folder(dataset, folder, progress)):
        (folder / MANIFEST).unlink()
        raise InputError(f"{folder} cannot be used: {problems[0]} (problems in all: {len(problems)}).")
    _tell_absent_classes(dataset, opened, progress)
    progress("used in place", 1, 1)
    return folder


def _tell_absent_classes(dataset: Dataset, opened: OpenedSource, progress: Progress) -> None:
    for note in _absent_classes(dataset, opened):
        progress(f"note: {note}", 1, 1)


def _absent_classes(dataset: Dataset, opened: OpenedSource) -> list[Problem]:
    labels = {name: [item.label for item in items] for name, items in opened.split.lists.items()}
    return describe_absent_classes(dataset, labels, opened.source.classes)


def build_folder(dataset: Dataset, opened: OpenedSource, target: Path, progress: Progress, *, in_place: bool) -> Path:
    """Writes the standard folder, whole or not at all.

    Args:
        dataset: Gives the names of the lists.
        opened: The images and their division.
        target: The folder to make.
        progress: Told each step.
        in_place: Whether images that lie in a folder are used there.

    Raises:
        InputError: The result does not pass ``verify_folder``.
        OSError: It cannot be written.
    """
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{dataset.name}.", suffix=".partial"))
    in_place = in_place and opened.source.base is not None
    try:
        if in_place:
            paths, files = _hash_images(opened, progress)
        else:
            paths, files = _write_images(dataset, opened, temporary, progress)
        lists: dict[str, bytes] = {}
        for name, items in opened.split.lists.items():
            lists[f"{name}.txt"] = "".join(f"{paths[item.name]} {item.label}\n" for item in items).encode()
            (temporary / f"{name}.txt").write_bytes(lists[f"{name}.txt"])
        home = str(opened.source.base.resolve()) if in_place and opened.source.base is not None else ""
        manifest = _make_manifest(dataset, opened, lists, files, home)
        (temporary / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        decoded = {info.sha256 for info in opened.looked_at.values()}
        if problems := _without_notes(verify_folder(dataset, temporary, progress, decoded)):
            raise InputError(f"{opened.place} cannot be used: {problems[0].what} (problems in all: {len(problems)}).")
        _tell_absent_classes(dataset, opened, progress)
        progress("writing to disk", 0, 1)
        temporary.chmod(0o755)
        os.sync()  # one flush for thousands of files, before the name appears
        temporary.rename(target)
        sync_folder(target.parent)
        progress("used in place" if in_place else "prepared", 1, 1)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _write_images(
    dataset: Dataset, opened: OpenedSource, folder: Path, progress: Progress
) -> tuple[dict[str, str], dict[str, FileInfo]]:
    """Writes every chosen image to ``images/<list>/<position>``, for the first list that contains it.

    Returns:
        Path per name of an item, and what the manifest says per path.
    """
    names = dataset.lists
    paths: dict[str, str] = {}
    for name in (names.train, names.val, names.test, names.both):
        (folder / "images" / name).mkdir(parents=True)
        for i, item in enumerate(opened.split.lists[name]):
            suffix = PurePosixPath(item.name).suffix.lower()
            suffix = suffix if suffix in IMAGE_SUFFIXES else ""
            paths.setdefault(item.name, f"images/{name}/{i:06d}{suffix}")
    both = folder / "images" / names.both
    files: dict[str, FileInfo] = {}
    for item, data in read_chosen(opened, progress, "reading the source"):
        path = paths[item.name]
        (folder / path).write_bytes(data)
        files[path] = FileInfo(sha256(data), len(data), item.name, item.label)
    if _is_empty(both):
        both.rmdir()
    return paths, files


def _hash_images(opened: OpenedSource, progress: Progress) -> tuple[dict[str, str], dict[str, FileInfo]]:
    """Hashes images that are used in place; returns the same as ``_write_images``."""
    files = dict(opened.looked_at) or {
        item.name: FileInfo(sha256(data), len(data), item.name, item.label)
        for item, data in read_chosen(opened, progress, "hashing the images")
    }
    return {name: name for name in files}, files


def _make_manifest(
    dataset: Dataset, opened: OpenedSource, lists: dict[str, bytes], files: dict[str, FileInfo], home: str
) -> Manifest:
    hashes = {name: sha256(data) for name, data in lists.items()}
    note = opened.split.note
    if opened.synthetic:
        note = f"SYNTHETIC: made up by this package in the form of {dataset.name}; it holds none of its images. {note}"
    note = " ".join((note, *(f"{problem.what}." for problem in _absent_classes(dataset, opened))))
    lossy_suffixes = any(path.lower().endswith(LOSSY_SUFFIXES) for path in files)
    return Manifest(
        dataset=dataset.name,
        data_id=compute_content_id(hashes, {path: info.sha256 for path, info in files.items()}),
        split_id=opened.split.split_id,
        seed=opened.seed,
        source_id=compute_source_id(opened, {info.source: info.sha256 for info in files.values()}),
        source=opened.place.name,
        lossy=opened.source.lossy or (dataset.encoding == "lossless" and lossy_suffixes),
        classes=opened.source.classes,
        counts={name: len(items) for name, items in opened.split.lists.items()},
        lists=hashes,
        files=files,
        note=note,
        code={"recipe": f"{opened.reader}/{splits.RULES_VERSION}", "s2a_bench": _package_version()},
        synthetic=bool(opened.synthetic),
        home=home,
        own=opened.own,
    )


def _package_version() -> str:
    try:
        return importlib.metadata.version("s2a-bench")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

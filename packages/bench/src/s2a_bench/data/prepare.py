"""Prepares a download: writes the standard folder of a dataset (see ``folder.py``), completely or not at all.

A temporary folder beside the target is filled, verified, flushed to disk and renamed: a process that is killed leaves
``.<name>.*.partial``, which the next one removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from s2a_bench.data import splits
from s2a_bench.data.folder import (
    MANIFEST,
    FileInfo,
    Manifest,
    compute_content_id,
    read_manifest,
    replacing,
    reserve_path,
    sha256,
)
from s2a_bench.data.readers import published_splits as split_files
from s2a_bench.data.readers import registry
from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.types import Dataset, Preparation
from s2a_bench.data.verify import Problem, Progress, verify_folder
from s2a_bench.errors import InputError

Synthetic = Literal["", "miniature", "full"]


@dataclasses.dataclass(frozen=True)
class _OpenedSource:
    """An opened source and its division into lists; no image has been read yet."""

    place: Path
    reader: str
    source: Source
    split: splits.Split
    synthetic: Synthetic

    @property
    def chosen(self) -> dict[str, SourceImage]:
        return {item.name: item for items in self.split.lists.values() for item in items}


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
        progress: Told what is being done.
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
    if not source.exists():
        raise InputError(f"Source {source} does not exist; give {_describe_accepted_sources(dataset, preparation)}.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with reserve_path(root / dataset.name) as held:
            if not held:
                raise InputError(f"Another process is preparing {dataset.name} in {root}; wait for it to end.")
            for stale in root.glob(f".{dataset.name}.*.partial"):
                shutil.rmtree(stale)
            target = root / dataset.name
            with _open_source(dataset, preparation, source, split, synthetic, progress) as opened:
                if opened.source.base is not None and target.exists() and opened.source.base.samefile(target):
                    return _adopt_folder(dataset, opened, target, progress)
                if target.is_symlink() or (target.exists() and not _is_empty(target)):
                    _check_existing(dataset, opened, target, progress)
                    return target
                return _build_folder(dataset, preparation, opened, target, progress)
    except OSError as error:
        raise InputError(f"Cannot write {dataset.name} to {root} ({error}); nothing was prepared.") from error


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _ignore_progress(what: str, done: int, total: int) -> None:
    pass


def _preparation_of(dataset: Dataset) -> Preparation:
    if dataset.preparation is None:
        raise InputError(f"Dataset {dataset.name!r} is embedded in the package; there is nothing to prepare.")
    return dataset.preparation


def _describe_accepted_sources(dataset: Dataset, preparation: Preparation) -> str:
    """The accepted sources of a dataset, as part of an error sentence."""
    forms = [*preparation.archives]
    if preparation.folder:
        forms.append(f"{preparation.folder}/")
    own = f"{' or '.join(forms)}, or the folder that holds it" if forms else "the folder that holds the download"
    also = ", a VTAB-1k folder" if dataset.suite == "vtab" else ""
    return f"{own}{also}, a tensorflow_datasets or a Hugging Face hub directory (from {dataset.where})"


@contextlib.contextmanager
def _open_source(
    dataset: Dataset,
    preparation: Preparation,
    place: Path,
    split: Path | None,
    synthetic: Synthetic,
    progress: Progress,
) -> Iterator[_OpenedSource]:
    progress("looking into the source", 0, 0)
    with Tree(place, preparation.archives) as tree:
        reader = registry.find_reader(tree, dataset)
        if reader is None:
            accepted = _describe_accepted_sources(dataset, preparation)
            raise InputError(f"{place} contains no known format of {dataset.name}; give {accepted}.")
        source = reader.open(tree, dataset)
        _check_source(dataset, place, source)
        source = _apply_published_split(dataset, preparation, tree, source, split)
        chosen = splits.split_source(dataset, preparation, source)
        if synthetic != "miniature":
            _check_counts(dataset, place, chosen)
        yield _OpenedSource(place, reader.name, source, chosen, synthetic)


def _check_source(dataset: Dataset, place: Path, source: Source) -> None:
    """Checks what every reader must deliver: class count, unique names, labels in range."""
    if len(source.classes) != dataset.classes:
        raise InputError(
            f"{place} has {len(source.classes)} classes but {dataset.name} has {dataset.classes}; it is another set."
        )
    if not source.images:
        raise InputError(f"{place} holds no images of {dataset.name}; give the complete download.")
    seen: set[str] = set()
    for item in source.images:
        if item.name in seen:
            raise InputError(f"{place} holds {item.name} twice; download it again.")
        seen.add(item.name)
        if not 0 <= item.label < dataset.classes:
            raise InputError(
                f"{place}: {item.name} has label {item.label}; there are {dataset.classes} classes, counted from 0."
            )


def _apply_published_split(
    dataset: Dataset, preparation: Preparation, tree: Tree, source: Source, given: Path | None
) -> Source:
    """The source with the lists and labels of a published split, if one was given or lies in it."""
    kind = preparation.splits
    if given is None:
        found = split_files.find_split(tree) if kind else None
        if found is None:
            return source
        given = found
    elif not kind:
        raise InputError(f"{dataset.name} takes no split file: its lists follow from its source alone.")
    lists, labels, classes, split_id = split_files.read_split(given, kind, dataset, source)
    items = tuple(dataclasses.replace(item, label=labels[item.name]) for item in source.images if item.name in labels)
    renamed: dict[str, str] = dict(zip(("train", "val", "test"), dataset.lists[:2] + dataset.lists[3:], strict=True))
    return dataclasses.replace(
        source,
        images=items,
        classes=classes,
        lists={renamed[name]: names for name, names in lists.items()},
        split_id=split_id,
        note=f"The lists of {given.name}. {source.note}".strip(),
    )


def _check_counts(dataset: Dataset, place: Path, split: splits.Split) -> None:
    for name, items in split.lists.items():
        expected = dataset.count(name)
        if expected is not None and len(items) != expected:
            raise InputError(
                f"{place} gives {len(items)} images for {name}.txt but {dataset.name} has {expected}; "
                "some images are missing or added, so download it again."
            )


def _compute_source_id(opened: _OpenedSource, hashes: dict[str, str]) -> str:
    """16 hex digits over what the source lists and the content of the chosen images, however they were packed."""
    index = sorted((item.name.lower(), item.label, item.part) for item in opened.source.images)
    return compute_content_id(
        {"index": sha256(json.dumps(index).encode())}, {name.lower(): digest for name, digest in hashes.items()}
    )


def _read_chosen(opened: _OpenedSource, progress: Progress, what: str) -> Iterator[tuple[SourceImage, bytes]]:
    """Yields the content of every chosen image once.

    Raises:
        InputError: The source did not deliver one of them.
    """
    chosen = opened.chosen
    left = set(chosen)
    for name, data in opened.source.read(frozenset(chosen)):
        if name in left:
            left.remove(name)
            yield chosen[name], data
            progress(what, len(chosen) - len(left), len(chosen))
    if left:
        raise InputError(
            f"{opened.place} does not give {min(left)} ({len(left)} images are missing); download it again."
        )


def _check_existing(dataset: Dataset, opened: _OpenedSource, target: Path, progress: Progress) -> None:
    manifest = read_manifest(target)
    if manifest is None:
        raise InputError(f"{target} exists and was not made by this command; move it away or give another data folder.")
    if problems := _without_notes(verify_folder(dataset, target, progress)):
        raise InputError(
            f"{target} exists but is damaged (problems: {len(problems)}, the first: {problems[0]}); "
            "delete it and prepare again."
        )
    hashes = {item.name: sha256(data) for item, data in _read_chosen(opened, progress, "comparing with the source")}
    source_id = _compute_source_id(opened, hashes)
    if source_id != manifest.source_id or opened.split.split_id != manifest.split_id:
        raise InputError(
            f"{target} was prepared from other images ({manifest.source}, source id {manifest.source_id}, split "
            f"{manifest.split_id}) than {opened.place} holds (source id {source_id}, split {opened.split.split_id}); "
            "delete it or give another data folder."
        )
    progress("already prepared and intact; nothing to do", 1, 1)


def _without_notes(problems: Sequence[Problem]) -> list[Problem]:
    return [problem for problem in problems if not problem.note]


def _adopt_folder(dataset: Dataset, opened: _OpenedSource, folder: Path, progress: Progress) -> Path:
    """Adds a manifest to a folder of another tool that lies at its place under the data root already."""
    if read_manifest(folder) is not None:
        if problems := _without_notes(verify_folder(dataset, folder, progress)):
            raise InputError(f"{folder} is damaged (problems: {len(problems)}, the first: {problems[0]}); repair it.")
        progress("already prepared and intact; nothing to do", 1, 1)
        return folder
    lists = {f"{name}.txt": (folder / f"{name}.txt").read_bytes() for name in dataset.lists}
    files = {
        item.name: FileInfo(sha256(data), len(data), item.name, item.label)
        for item, data in _read_chosen(opened, progress, "hashing the images")
    }
    manifest = _make_manifest(dataset, opened, lists, files, "")
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(manifest.to_json(), encoding="utf-8")
        temporary.chmod(0o644)
    if problems := _without_notes(verify_folder(dataset, folder, progress)):
        (folder / MANIFEST).unlink()
        raise InputError(f"{folder} cannot be used: {problems[0]} (problems in all: {len(problems)}).")
    progress("used in place", 1, 1)
    return folder


def _build_folder(
    dataset: Dataset, preparation: Preparation, opened: _OpenedSource, target: Path, progress: Progress
) -> Path:
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{dataset.name}.", suffix=".partial"))
    in_place = opened.source.base is not None and (preparation.in_place or opened.reader == "noah")
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
        if problems := _without_notes(verify_folder(dataset, temporary, progress)):
            raise InputError(f"{opened.place} cannot be used: {problems[0].what} (problems in all: {len(problems)}).")
        progress("writing to disk", 0, 1)
        temporary.chmod(0o755)
        os.sync()  # one flush for thousands of files, before the name appears
        temporary.rename(target)
        _flush(target.parent)
        progress("used in place" if in_place else "prepared", 1, 1)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_images(
    dataset: Dataset, opened: _OpenedSource, folder: Path, progress: Progress
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
            paths.setdefault(item.name, f"images/{name}/{i:06d}{suffix}")
    both = folder / "images" / names.both
    files: dict[str, FileInfo] = {}
    for item, data in _read_chosen(opened, progress, "reading the source"):
        path = paths[item.name]
        (folder / path).write_bytes(data)
        files[path] = FileInfo(sha256(data), len(data), item.name, item.label)
    if _is_empty(both):
        both.rmdir()
    return paths, files


def _hash_images(opened: _OpenedSource, progress: Progress) -> tuple[dict[str, str], dict[str, FileInfo]]:
    """Hashes images that are used in place; returns the same as ``_write_images``."""
    files = {
        item.name: FileInfo(sha256(data), len(data), item.name, item.label)
        for item, data in _read_chosen(opened, progress, "hashing the images")
    }
    return {name: name for name in files}, files


def _make_manifest(
    dataset: Dataset, opened: _OpenedSource, lists: dict[str, bytes], files: dict[str, FileInfo], home: str
) -> Manifest:
    hashes = {name: sha256(data) for name, data in lists.items()}
    note = opened.split.note
    if opened.synthetic:
        note = f"SYNTHETIC: made up by this package in the form of {dataset.name}; it holds none of its images. {note}"
    lossy_suffixes = any(path.lower().endswith((".jpg", ".jpeg", ".webp")) for path in files)
    return Manifest(
        dataset=dataset.name,
        data_id=compute_content_id(hashes, {path: info.sha256 for path, info in files.items()}),
        split_id=opened.split.split_id,
        seed=dataset.preparation.seed if dataset.preparation else 0,
        source_id=_compute_source_id(opened, {info.source: info.sha256 for info in files.values()}),
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
    )


def _package_version() -> str:
    try:
        return importlib.metadata.version("s2a-bench")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""Brings a download into the standard folder, all or nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from s2a_bench import datasets
from s2a_bench.datasets import ClassFolders, Dataset
from s2a_bench.errors import InputError
from s2a_bench.images import members
from s2a_bench.layout import (
    LISTS,
    MANIFEST,
    FileInfo,
    Manifest,
    content_id,
    locked,
    read_manifest,
    sha256,
)
from s2a_bench.verify import Progress, verify_folder

RECIPE_VERSION = 1
"""Raise it when the same source would give other lists."""

NOTE = (
    "VTAB-1k takes slices of tensorflow_datasets' stored order, which depends on the order in which a file system "
    "lists the archive and cannot be rebuilt from the archive alone. The lists here use the same numbers of images "
    "per class and the same slices, over an order fixed by hashes of the file names; they are not the images of "
    "other VTAB-1k folders."
)


@dataclasses.dataclass(frozen=True)
class _Image:
    label: int
    name: str  # "<class>/<file>" as in the source
    sha256: str
    bytes: int
    path: Path  # where its content was put down

    @property
    def key(self) -> str:
        folder, _, file = self.name.partition("/")
        return f"{folder.lower()}/{file}"


def prepare(name: str, source: Path, root: Path, progress: Progress | None = None) -> Path:
    """Makes ``<root>/<name>`` from a download.

    The folder is built beside its place, verified, flushed to disk and renamed: it is there whole or not at all.
    Where it is there already, made from the same images and intact, nothing is done but to say so to ``progress``.

    Args:
        name: Dataset with a recipe.
        source: The archive, the folder it extracts to, or a folder that holds either.
        root: Data root; made if need be.
        progress: Told what is being done.

    Returns:
        The dataset's folder.

    Raises:
        InputError: Unknown dataset or no recipe for it, wrong, broken or incomplete source, a place that is taken or
            not writable, or another process preparing under the same root.
    """
    dataset = datasets.find(name)
    recipe = _recipe(dataset)
    place = _find_source(Path(source), recipe)
    say = progress or _silent
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root, wait=False) as held:
            if not held:
                raise InputError(f"Another process is preparing a dataset in {root}; wait for it to end.")
            for stale in root.glob(f".{dataset.name}.*.partial"):
                shutil.rmtree(stale)
            target = root / dataset.name
            if target.is_symlink() or (target.exists() and not _is_empty(target)):
                _check_existing(dataset, recipe, place, target, say)
                return target
            return _build(dataset, recipe, place, target, say)
    except OSError as error:
        raise InputError(f"Cannot write {dataset.name} to {root} ({error}); nothing was prepared.") from error


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _silent(what: str, done: int, total: int) -> None:
    pass


def _recipe(dataset: Dataset) -> ClassFolders:
    if dataset.embedded:
        raise InputError(f"Dataset {dataset.name!r} is embedded in the package; there is nothing to prepare.")
    if dataset.recipe is None:
        can = ", ".join(sorted(entry.name for entry in datasets.DATASETS.values() if entry.recipe is not None))
        raise InputError(
            f"Dataset {dataset.name!r} cannot be prepared from a download yet (these can: {can}); "
            f"put a {dataset.where} into a folder {dataset.name}/ of the data root (data/README.md shows the layout)."
        )
    return dataset.recipe


def _find_source(source: Path, recipe: ClassFolders) -> Path:
    if source.is_file():
        return source
    if source.name == recipe.folder and source.is_dir():
        return source
    for base in (source, *(source / name for name in recipe.outer)):
        for candidate in (*(base / name for name in recipe.archives), base / recipe.folder):
            if candidate.exists():
                return candidate
    for name in recipe.outer:
        if (source / f"{name}.zip").is_file():
            return source / f"{name}.zip"
    wanted = ", ".join((*recipe.archives, f"{recipe.folder}/", *(f"{name}.zip" for name in recipe.outer)))
    state = "holds none of them" if source.is_dir() else "does not exist"
    raise InputError(f"Source {source} {state}; give one of {wanted}, or the folder that holds it.")


def _read(recipe: ClassFolders, place: Path) -> Iterator[tuple[int, str, bytes]]:
    """Label, ``"<class>/<file>"`` and content of every image of the source.

    Raises:
        InputError: Not the right source: no such folder in it, a folder that is no class, or a repeated image.
    """
    labels = {name.lower(): i for i, name in enumerate(recipe.class_names)}
    seen: set[str] = set()
    for member, data in members(place, inner=recipe.archives):
        parts = PurePosixPath(member).parts
        if place.is_dir():
            parts = (recipe.folder, *parts)
        if len(parts) < 3 or parts[-3] != recipe.folder:
            continue
        name = f"{parts[-2]}/{parts[-1]}"
        if parts[-2].lower() not in labels:
            raise InputError(
                f"{place} has a folder {parts[-2]!r} that is no class of {recipe.folder}; it is another set."
            )
        if name.lower() in seen:
            raise InputError(f"{place} holds {name} twice; download it again.")
        seen.add(name.lower())
        yield labels[parts[-2].lower()], name, data
    if not seen:
        raise InputError(f"{place} holds no images in {recipe.folder}/<class>/; it is another archive or folder.")


def _source_id(images: list[tuple[str, str]]) -> str:
    """16 hex digits over the names and hashes of a source's images, in any order and however they were packed."""
    return content_id({}, {name.lower(): digest for name, digest in images})


def _check_existing(dataset: Dataset, recipe: ClassFolders, place: Path, target: Path, say: Progress) -> None:
    manifest = read_manifest(target)
    if manifest is None:
        raise InputError(f"{target} exists and was not made by this command; move it away or give another data folder.")
    if problems := verify_folder(dataset, target, say):
        raise InputError(
            f"{target} exists but is damaged (problems: {len(problems)}, the first: {problems[0]}); "
            "delete it and prepare again."
        )
    found: list[tuple[str, str]] = []
    for _, name, data in _read(recipe, place):
        found.append((name, sha256(data)))
        say("comparing with the source", len(found), 0)
    if _source_id(found) != manifest.source_id or (manifest.split_id, manifest.seed) != (
        _split_id(recipe),
        recipe.seed,
    ):
        raise InputError(
            f"{target} was prepared from other images ({manifest.source}, source id {manifest.source_id}) than "
            f"{place} holds (source id {_source_id(found)}); delete it or give another data folder."
        )
    say("already prepared and intact; nothing to do", 1, 1)


def _build(dataset: Dataset, recipe: ClassFolders, place: Path, target: Path, say: Progress) -> Path:
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{dataset.name}.", suffix=".partial"))
    try:
        images = _put_down(dataset, recipe, place, temporary / "incoming", say)
        lists = _choose(recipe, images)
        _check_counts(dataset, place, lists)
        manifest = _arrange(dataset, recipe, place, temporary, images, lists)
        (temporary / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        if problems := verify_folder(dataset, temporary, say):
            raise InputError(f"{place} cannot be used: {problems[0].what} (problems in all: {len(problems)}).")
        say("writing to disk", 0, 1)
        temporary.chmod(0o755)
        os.sync()  # one flush for thousands of files, before the name appears
        temporary.rename(target)
        _flush(target.parent)
        say("prepared", 1, 1)
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


def _put_down(dataset: Dataset, recipe: ClassFolders, place: Path, folder: Path, say: Progress) -> list[_Image]:
    """Every image of the source as a file of its own, named by nothing of the source's."""
    folder.mkdir()
    images: list[_Image] = []
    expected = (dataset.counts.test or 0) + recipe.per_class * dataset.classes if dataset.counts.test else 0
    for label, name, data in _read(recipe, place):
        path = folder / f"{len(images):06d}{PurePosixPath(name).suffix.lower()}"
        path.write_bytes(data)
        images.append(_Image(label, name, sha256(data), len(data), path))
        say("reading the source", len(images), expected)
    return images


def _choose(recipe: ClassFolders, images: list[_Image]) -> dict[str, list[_Image]]:
    """The four lists; the same for the same names, whatever their order, platform and library versions.

    Raises:
        InputError: A class is absent or has fewer images than the pool takes.
    """

    def draw(purpose: str, image: _Image) -> str:
        return hashlib.sha256(f"s2a {purpose} {recipe.seed} {image.key}".encode()).hexdigest()

    pool: list[_Image] = []
    rest: list[_Image] = []
    for label, name in enumerate(recipe.class_names):
        members = sorted((i for i in images if i.label == label), key=lambda image: draw("class", image))
        if len(members) < recipe.per_class:
            state = f"has {len(members)} images" if members else "is missing"
            raise InputError(f"Class {name!r} {state} in the source; at least {recipe.per_class} are needed.")
        pool += members[: recipe.per_class]
        rest += members[recipe.per_class :]
    pool.sort(key=lambda image: draw("pool", image))
    rest.sort(key=lambda image: draw("test", image))
    train, val = pool[slice(*recipe.train)], pool[slice(*recipe.val)]
    return {"train800": train, "val200": val, "train800val200": train + val, "test": rest}


def _check_counts(dataset: Dataset, place: Path, lists: dict[str, list[_Image]]) -> None:
    for name, entries in lists.items():
        expected = getattr(dataset.counts, name)
        if expected is not None and len(entries) != expected:
            raise InputError(
                f"{place} gives {len(entries)} images for {name}.txt but {dataset.name} has {expected}; "
                "some images are missing or added, so download it again."
            )


def _arrange(
    dataset: Dataset,
    recipe: ClassFolders,
    place: Path,
    folder: Path,
    images: list[_Image],
    lists: dict[str, list[_Image]],
) -> Manifest:
    """Moves the chosen images to their places, writes the lists and removes what is left over."""
    paths: dict[str, str] = {}
    files: dict[str, FileInfo] = {}
    for name in ("train800", "val200", "test"):
        (folder / "images" / name).mkdir(parents=True)
        for i, image in enumerate(lists[name]):
            path = f"images/{name}/{i:06d}{image.path.suffix}"
            image.path.rename(folder / path)
            paths[image.name] = path
            files[path] = FileInfo(image.sha256, image.bytes, image.name)
    shutil.rmtree(folder / "incoming")
    hashes: dict[str, str] = {}
    for name in LISTS:
        data = "".join(f"{paths[image.name]} {image.label}\n" for image in lists[name]).encode()
        (folder / f"{name}.txt").write_bytes(data)
        hashes[f"{name}.txt"] = sha256(data)
    return Manifest(
        dataset=dataset.name,
        data_id=content_id(hashes, {path: info.sha256 for path, info in files.items()}),
        split_id=_split_id(recipe),
        seed=recipe.seed,
        source_id=_source_id([(image.name, image.sha256) for image in images]),
        source=place.name,
        lossy=False,
        classes=recipe.class_names,
        counts={name: len(entries) for name, entries in lists.items()},
        lists=hashes,
        files=files,
        note=NOTE,
        code={"recipe": f"class_folders/{RECIPE_VERSION}", "s2a_bench": _version()},
    )


def _split_id(recipe: ClassFolders) -> str:
    return f"s2a-seed{recipe.seed}-v{RECIPE_VERSION}"


def _version() -> str:
    try:
        return importlib.metadata.version("s2a-bench")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

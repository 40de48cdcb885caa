"""Image folders that come with lists: SUN397 and DomainNet."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from s2a_bench.data.images import UNREAD_SUFFIXES, is_image
from s2a_bench.data.readers._folders import (
    check_unique,
    common_folder,
    find_class_images,
    is_lossy,
    make_reader,
    missing_parents,
    preparation_of,
    read_lines,
)
from s2a_bench.data.readers.source import Reader, Source, SourceImage
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError

# --- SUN397 ----------------------------------------------------------------------------------------------------------

SUN397_FOLDER = "SUN397"
SUN397_LISTS = {"train": "sun397_tfds_tr.txt", "val": "sun397_tfds_va.txt", "test": "sun397_tfds_te.txt"}
_SUN397_SIZES = {"train": 76_128, "val": 10_875, "test": 21_750}
_SUN397_DAMAGED = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"
"""Decoders disagree about it; it is in none of tensorflow_datasets' lists (its ``sun397_dataset_builder.py``)."""

_SUN397_UNSTABLE = "t/track/outdoor/sun_aophkoiosslinihb.jpg"
"""Likewise, but in the list of training images, behind those that VTAB-1k takes."""

_SUN397_DRAWN = (
    "SUN397's parts as tensorflow_datasets has them are a random draw that its lists alone tell, and they are not in "
    "the source (sun397_tfds_tr.txt, sun397_tfds_va.txt and sun397_tfds_te.txt of its package, put next to the "
    "archive, are taken); parts of the same sizes were drawn by hashes of the file names."
)


def recognises_sun397(tree: Tree, dataset: Dataset) -> bool:
    """Whether the tree is, or has, a folder ``SUN397``."""
    return bool(missing_parents(tree, SUN397_FOLDER) or tree.files_under(SUN397_FOLDER))


def open_sun397(tree: Tree, dataset: Dataset) -> Source:
    """``SUN397/<letter>/<class>/<image>``; a class may be a path, as ``outdoor`` and ``indoor`` kinds are.

    Labels are positions in the sorted ``"/a/abbey"`` paths, as in tensorflow_datasets' ``sun397_labels.txt``. Its
    lists of parts decide where they are in the source; otherwise parts of the same proportions are drawn. Names are
    ``"a/abbey/sun_aaa.jpg"``.

    Raises:
        InputError: Another set, an image outside the classes of ``ClassName.txt``, or lists that do not fit.
    """
    paths, prefixes = _find_sun397_images(tree)
    if not paths:
        raise InputError(f"{tree.place} holds no images in {SUN397_FOLDER}/<letter>/<class>/; it is another set.")
    check_unique(tree.place, paths)
    folders = {name.rpartition("/")[0] for name in paths}
    known = _read_sun397_classes(tree, folders)
    if len(known) != dataset.classes:
        raise InputError(
            f"{tree.place} has {len(known)} classes in {SUN397_FOLDER} but {dataset.name} has {dataset.classes}; "
            "it is another set, or a part of it."
        )
    labels = {folder: label for label, folder in enumerate(known)}
    paths.pop(_SUN397_DAMAGED, None)
    if any(tree.has(name) for name in SUN397_LISTS.values()):
        parts, note = _read_sun397_parts(tree, paths), ""
        # Only with these lists are the parts those of tensorflow_datasets, so that its keys give its order.
        items = tuple(SourceImage(n, labels[n.rpartition("/")[0]], parts[n], f"/{n}") for n in paths)
    else:
        parts, note = _draw_sun397_parts(paths, preparation_of(dataset).seed), _SUN397_DRAWN
        items = tuple(SourceImage(n, labels[n.rpartition("/")[0]], parts[n]) for n in paths)
    return Source(
        items,
        tuple(folder.partition("/")[2] for folder in known),
        make_reader(tree, paths),
        base=common_folder(tree, prefixes),
        lossy=is_lossy(dataset, paths),
        note=note,
    )


def _find_sun397_images(tree: Tree) -> tuple[dict[str, str], set[str]]:
    """Path per name, and the prefixes of names in paths."""
    lacking = missing_parents(tree, SUN397_FOLDER)
    paths: dict[str, str] = {}
    prefixes: set[str] = set()
    for path in tree.names:
        whole = (*lacking, *path.split("/"))
        if SUN397_FOLDER not in whole[:-1]:
            continue
        if path.lower().endswith(UNREAD_SUFFIXES):
            raise InputError(
                f"{tree.place} holds {path}, a kind of image that is not read here; give the original JPEG files."
            )
        if not is_image(path):
            continue
        start = len(whole) - whole[::-1].index(SUN397_FOLDER)
        if len(whole) - start < 3:
            raise InputError(
                f"{tree.place}: image {path} lies in no class folder of {SUN397_FOLDER}; it is another set."
            )
        name = "/".join(whole[start:])
        if name in paths:
            raise InputError(f"{tree.place} holds {name} twice; download it again.")
        paths[name] = path
        prefixes.add(path[: -len(name)])
    return dict(sorted(paths.items())), prefixes


def _read_sun397_classes(tree: Tree, folders: set[str]) -> list[str]:
    """Classes as paths without the leading ``/``, in label order."""
    if not tree.has("ClassName.txt"):
        return sorted(folders)
    path = tree.find("ClassName.txt")
    listed = [line.removeprefix("/") for _, line in read_lines(tree, path)]
    if len(set(listed)) != len(listed):
        raise InputError(f"{path} in {tree.place} names a class twice; download it again.")
    if unknown := folders - set(listed):
        raise InputError(
            f"{tree.place} has a folder {min(unknown)!r} that is not a class of {path}; it is another set."
        )
    if missing := set(listed) - folders:
        raise InputError(
            f"{tree.place} holds no images of class {min(missing)!r} of {path}: it is missing; "
            "give the complete download."
        )
    return sorted(listed)


def _read_sun397_parts(tree: Tree, paths: dict[str, str]) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part, file in SUN397_LISTS.items():
        path = tree.find(file)
        for number, line in read_lines(tree, path):
            name = line.removeprefix("/")
            if name in parts:
                raise InputError(f"{tree.place}, {path}:{number}: {line} is listed twice.")
            if name not in paths:
                raise InputError(f"{tree.place}, {path}:{number}: there is no image {line}; get the archive again.")
            parts[name] = part
    if unlisted := paths.keys() - parts.keys():
        raise InputError(
            f"{tree.place}: {min(unlisted)} is in none of {', '.join(SUN397_LISTS.values())} ({len(unlisted)} images "
            "are not); take the lists and the archive as they were published."
        )
    return parts


def _draw_sun397_parts(paths: dict[str, str], seed: int) -> dict[str, str]:
    """Parts in tensorflow_datasets' proportions: train and val rounded down, the rest test."""

    def draw(name: str) -> tuple[bool, str]:
        # The image that decoders disagree about must not be scored: it is in train, as in tensorflow_datasets.
        text = f"part {seed} {name}".encode("utf-8", "surrogateescape")
        return name != _SUN397_UNSTABLE, hashlib.sha256(text).hexdigest()

    order = sorted(paths, key=draw)
    whole = sum(_SUN397_SIZES.values())
    train = len(order) * _SUN397_SIZES["train"] // whole
    val = len(order) * _SUN397_SIZES["val"] // whole
    return {name: "train" if i < train else "val" if i < train + val else "test" for i, name in enumerate(order)}


# --- DomainNet -------------------------------------------------------------------------------------------------------


def _domain_of(dataset: Dataset) -> str:
    target = preparation_of(dataset).target
    assert target, f"{dataset.name} names no domain"
    return target


def recognises_domainnet(tree: Tree, dataset: Dataset) -> bool:
    """Whether the tree has one of the domain's lists, or its images."""
    domain = _domain_of(dataset)
    return any(tree.has(f"{domain}_{part}.txt") for part in ("train", "test")) or tree.files_under(domain) != []


def open_domainnet(tree: Tree, dataset: Dataset) -> Source:
    """``<domain>/<class>/<image>`` with lists ``<domain>_train.txt`` and ``<domain>_test.txt`` of paths and labels.

    Names are the lists' paths, and items are in their order. A class may be absent from one list, not from both: the
    cleaned ``painting`` has no t-shirt to train on. Images that no list names are left out.

    Raises:
        InputError: A list is missing or malformed, names an image that is not there or one twice, or labels and class
            folders do not match.
    """
    domain = _domain_of(dataset)
    files = {part: tree.find(f"{domain}_{part}.txt") for part in ("train", "test")}
    found = list(find_class_images(tree, domain))
    prefixes = {image.prefix.removesuffix(f"{domain}/") for image in found}
    if len(prefixes) != 1:
        state = "holds no images" if not found else f"holds images at {len(prefixes)} places"
        raise InputError(
            f"{tree.place} {state} in {domain}/<class>/; give the lists and {domain}.zip, extracted or not."
        )
    (prefix,) = prefixes
    present = {image.path for image in found}
    paths: dict[str, str] = {}
    items: list[SourceImage] = []
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    for part, file in files.items():
        for number, line in read_lines(tree, file):
            where = f"{tree.place}, {file}:{number}"
            name, _, text = line.rpartition(" ")
            name, pieces = name.strip(), PurePosixPath(name.strip()).parts
            if not (text.isascii() and text.isdigit() and len(text) < 10 and len(pieces) == 3 and pieces[0] == domain):
                raise InputError(f"{where}: expected '{domain}/<class>/<image> <label>', not {line!r}.")
            label, folder = int(text), pieces[1]
            if label >= dataset.classes:
                raise InputError(f"{where}: label {label}; there are {dataset.classes} classes, counted from 0.")
            if names.setdefault(label, folder) != folder or labels.setdefault(folder, label) != label:
                raise InputError(
                    f"{where}: {folder} has label {label}, but elsewhere {names[label]} has label "
                    f"{labels.get(folder, label)}; download the lists again."
                )
            if name in paths:
                raise InputError(f"{where}: {name} is listed twice; download the lists again.")
            if prefix + name not in present:
                raise InputError(f"{where}: there is no image {name}; download {domain}.zip of the same version.")
            paths[name] = prefix + name
            items.append(SourceImage(name, label, part))
    check_unique(tree.place, paths)
    if absent := set(range(dataset.classes)) - names.keys():
        raise InputError(
            f"{tree.place}: no line of {domain}_train.txt and {domain}_test.txt has label {min(absent)} "
            f"({len(absent)} of {dataset.classes} are missing); download the lists again."
        )
    unlisted = len(present) - len(paths)
    note = f"{unlisted} images of {domain} are in no list and were left out." if unlisted else ""
    return Source(
        tuple(items),
        tuple(names[label] for label in range(dataset.classes)),
        make_reader(tree, paths),
        base=common_folder(tree, prefixes),
        lossy=is_lossy(dataset, paths),
        note=note,
    )


LISTED_READERS = (
    Reader("sun397", recognises_sun397, open_sun397),
    Reader("domainnet", recognises_domainnet, open_domainnet),
)

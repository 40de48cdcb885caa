"""Own images in folders: ``DIR/<class>/`` or ``DIR/{train,val,test}/<class>/``, or an archive of either.

The first level names the class (below a part: the second), and images lie at any depth below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from s2a_bench.data.images import UNREAD_SUFFIXES, is_image
from s2a_bench.data.own.read import (
    PART_NAMES,
    OwnImage,
    OwnSource,
    count_images,
    make_tree_reader,
    name_some,
    order_classes,
)
from s2a_bench.data.readers.member_paths import is_hidden
from s2a_bench.data.readers.tree import ARCHIVE_SUFFIXES, Tree
from s2a_bench.errors import InputError, Mistakes

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
_NO_CLASS_FILES = ("thumbs.db", "desktop.ini")


def read_folders(tree: Tree) -> OwnSource:
    """Reads class folders, or part folders of class folders.

    Raises:
        InputError: No images, images outside class folders, empty class folders, a folder one level too high or too
            low, or part folders that do not fit together; several mistakes together.
    """
    images = [name for name in tree.names if is_image(name)]
    unread = [name for name in tree.names if name.lower().endswith(UNREAD_SUFFIXES)]
    if not images:
        raise InputError(_explain_nothing(tree, unread))
    prefix = outer_folder([*images, *unread]) if tree.folder is None else ""
    mistakes = Mistakes()
    parts = _find_parts(tree, prefix, [*images, *unread], mistakes)
    if prefix == "" and not parts:
        _check_level(tree, [*images, *unread])
    taken = [_take(name, prefix, parts) for name in images]
    found = [image for image in taken if image is not None]
    refused = {image.name: image.label for name in unread if (image := _take(name, prefix, parts)) is not None}
    stray = [name for name, image in zip(images, taken, strict=True) if image is None]
    if stray:
        where = f"the part folders of {tree.place}" if parts else str(tree.place)
        mistakes.add(
            InputError(
                f"{count_images(len(stray))} lie directly in {where}, outside class folders ({name_some(stray)}); move "
                "each into the folder of its class, or out of there."
            )
        )
    if tree.folder is not None:
        labels = {(image.part, image.label) for image in found} | {
            (parts.get(name.split("/")[0]), label) for name, label in refused.items()
        }
        if empty := _find_empty(tree.folder, parts, labels):
            mistakes.add(
                InputError(
                    f"{len(empty)} class folder{'s' * (len(empty) != 1)} of {tree.place} hold{'s' * (len(empty) == 1)} "
                    f"no image: {name_some(empty)}; put images there or delete "
                    f"{'them' if len(empty) > 1 else 'it'}."
                )
            )
    mistakes.raise_all()
    others = [
        name
        for name in sorted(set(tree.names) - set(images) - set(unread))
        if PurePosixPath(name).name.lower() not in _NO_CLASS_FILES
    ]
    notes = []
    if others:
        notes.append(f"{len(others)} files of {tree.place} that are no images are left out ({name_some(others)}).")
    if hidden := _find_hidden(tree.folder):
        notes.append(f"Hidden folders of {tree.place} with images are left out: {name_some(hidden)}.")
    return OwnSource(
        place=tree.place,
        form="split folders" if parts else "class folders",
        images=tuple(found),
        classes=order_classes([*(image.label for image in found), *refused.values()]),
        read=make_tree_reader(tree, prefix),
        base=tree.folder,
        unread=refused,
        notes=tuple(notes),
    )


def _take(name: str, prefix: str, parts: Mapping[str, str]) -> OwnImage | None:
    """The image of a path, named without the prefix; ``None``: it lies outside class folders."""
    name = name.removeprefix(prefix)
    inner = name.split("/")
    part = None
    if parts:
        part = parts[inner[0]]
        inner = inner[1:]
    return OwnImage(name, inner[0], part) if len(inner) > 1 else None


def outer_folder(names: Sequence[str]) -> str:
    """The folders that an archive puts around its class folders or parts, ending in ``/``; ``""``: none."""
    prefix = ""
    while True:
        inner = [name[len(prefix) :].split("/") for name in names]
        first = {parts[0] for parts in inner}
        if len(first) != 1 or any(len(parts) < 3 for parts in inner):
            return prefix
        prefix += f"{first.pop()}/"


def _first_level(prefix: str, names: Iterable[str]) -> dict[str, list[list[str]]]:
    """Folder of the first level -> the paths below it, split."""
    found: dict[str, list[list[str]]] = {}
    for name in names:
        first, *rest = name.removeprefix(prefix).split("/")
        if rest:
            found.setdefault(first, []).append(rest)
    return found


def _find_parts(tree: Tree, prefix: str, names: Sequence[str], mistakes: Mistakes) -> dict[str, str]:
    """Folder of the first level -> ``"train"``, ``"val"`` or ``"test"``; empty where the folders are classes."""
    folders = _first_level(prefix, names)
    parts = {name: PART_NAMES[name.casefold()] for name in folders if name.casefold() in PART_NAMES}
    others = [name for name in folders if name not in parts]
    # A class may be called "train" too, after the vehicle: then its images lie right in it.
    nested = [name for name in parts if any(len(rest) > 1 for rest in folders[name])]
    if not nested or (others and len(set(parts.values())) < 2):
        if parts and not others and len(parts) > 1:
            raise InputError(
                f"The part folders of {tree.place} ({name_some(list(parts))}) hold images but no class folders; put "
                "the "
                "images of each class into a folder of its own, or give a table with the columns path, label and split."
            )
        return {}
    if others:
        raise InputError(
            f"{tree.place} holds the part folders {name_some(list(parts))} and beside them {name_some(others)}; move "
            "these out of there, or rename the part folders if they are classes."
        )
    if "train" not in parts.values():
        raise InputError(
            f"{tree.place} has {name_some(list(parts))} but no folder train; add one, or give a folder of classes."
        )
    for part in ("train", "val", "test"):
        several = [name for name, meant in parts.items() if meant == part]
        if len(several) > 1:
            mistakes.add(
                InputError(f"{tree.place} has the {part} part {len(several)} times ({name_some(several)}); keep one.")
            )
    return parts


def _check_level(tree: Tree, names: Sequence[str]) -> None:
    """Refuses a folder that lies one level or more above the class folders, or is one of them."""
    folders = _first_level("", names)
    direct = [name for name in names if "/" not in name]
    if direct and not folders:
        advice = (
            "put the images of each class into a folder of its own, or give a table with the columns path and label"
        )
        parent = tree.place.resolve().parent
        beside = [each.name for each in _list_folders(parent) if _holds_image(each)]
        if len(beside) > 1:
            advice = f"give {parent} if its folders ({name_some(beside)}) are the classes, or else {advice}"
        if table := _find_table(tree):
            advice = f"give {tree.place / table} if it is their table, or else {advice}"
        raise InputError(
            f"{count_images(len(direct))} lie directly in {tree.place} ({name_some(direct)}), not in class folders; "
            f"{advice}."
        )
    if len(folders) == 1 and not direct:
        (only, below), level = folders.copy().popitem(), ""
        while all(len(rest) > 1 for rest in below):
            level += f"{only}/"
            inner = {rest[0] for rest in below}
            if len(inner) > 1:
                raise InputError(
                    f"{tree.place} holds one folder, {only}, and the folders {name_some(sorted(inner))} are in it; if "
                    f"these are the classes, or train and test, give {tree.place / level}."
                )
            only, below = inner.pop(), [rest[1:] for rest in below]
        if table := _find_table(tree):
            raise InputError(
                f"{tree.place} holds images of one folder only, and beside it {table}; if that is their table, give "
                f"{tree.place / table}."
            )


def _find_table(tree: Tree) -> str | None:
    return next((name for name in tree.names if "/" not in name and name.lower().endswith(TABLE_SUFFIXES)), None)


def _find_empty(folder: Path, parts: Mapping[str, str], labels: set[tuple[str | None, str]]) -> list[str]:
    """Class folders on disk that hold no image."""
    if not parts:
        return [each.name for each in _list_folders(folder) if (None, each.name) not in labels]
    known = {label for _, label in labels}
    found: list[str] = []
    for name, part in parts.items():
        for each in _list_folders(folder / name):
            # One that is empty in val or test only is a class without an image there, which is told as a note.
            if (part, each.name) not in labels and (part == "train" or each.name not in known):
                found.append(f"{name}/{each.name}")
    return found


def _list_folders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not is_hidden(each.name))
    except OSError:
        return []


def _find_hidden(folder: Path | None) -> list[str]:
    """Hidden folders of the first level with images: perhaps a class whose name begins with a dot."""
    if folder is None:
        return []
    return [each.name for each in sorted(folder.glob(".*")) if each.is_dir() and _holds_image(each)]


def _holds_image(folder: Path) -> bool:
    try:
        return any(is_image(each.name) for each in folder.iterdir())
    except OSError:
        return False


def _explain_nothing(tree: Tree, unread: Sequence[str]) -> str:
    """What there is instead of images, and what to do."""
    if unread:
        return (
            f"{tree.place} holds {count_images(len(unread))} of formats that are not read here ({name_some(unread)}); "
            "convert them to JPEG or PNG first."
        )
    packed = [name for name in tree.names if name.lower().endswith(ARCHIVE_SUFFIXES)]
    if packed:
        return f"{tree.place} holds no images but archives ({name_some(packed)}); extract them, or give one of them."
    if table := _find_table(tree):
        return f"{tree.place} holds no images; if {table} is a table of images, give {tree.place / table}."
    held = f"only {name_some(tree.names)}" if tree.names else "nothing"
    return (
        f"{tree.place} holds no images ({held}); give a folder with a folder for each class, a table of paths and "
        "labels, or a Hugging Face dataset."
    )

"""Datasets that are published as image files in a folder for each class."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from s2a_bench.data.images import UNREAD_SUFFIXES, is_image
from s2a_bench.data.readers._folders import (
    ClassImage,
    assign_class_labels,
    check_depth,
    check_unique,
    common_folder,
    find_class_images,
    is_lossy,
    make_reader,
    missing_parents,
    preparation_of,
    read_lines,
)
from s2a_bench.data.readers.folders_listed import LISTED_READERS
from s2a_bench.data.readers.source import Reader, Source, SourceImage
from s2a_bench.data.readers.tree import ARCHIVE_SUFFIXES, Tree
from s2a_bench.data.table.types import Dataset, Preparation
from s2a_bench.errors import InputError

# --- <folder>/<class>/<image> ----------------------------------------------------------------------------------------

_KEYS = {"2750": "{}_{}", "NWPU-RESISC45": "{}_{}", "101_ObjectCategories": "{}/{}"}
"""tensorflow_datasets' key of an image, from class folder and file: ``image_classification/{eurosat,resisc45}.py`` from
release 4.2.0 on (before, it was a path of the machine), and ``caltech.py``."""


def _folder_names(preparation: Preparation) -> list[str]:
    """Names of the folder that holds the class folders: the original's, then those that re-packed archives have."""
    stems = [name[: -len(s)] for name in preparation.archives for s in ARCHIVE_SUFFIXES if name.lower().endswith(s)]
    return list(dict.fromkeys((preparation.folder, *(stem for stem in stems if "*" not in stem))))


def recognises_class_folders(tree: Tree, dataset: Dataset) -> bool:
    """Whether the tree is, or has, the preparation's folder; where it names none, whether images lie in folders."""
    preparation = preparation_of(dataset)
    if not preparation.folder:
        return any("/" in path and is_image(path) for path in tree.names)
    if missing_parents(tree, preparation.folder) or tree.files_under(preparation.folder):
        return True
    # Other names count only with images in class folders: a VTAB-1k folder may be called "caltech-101" as well.
    return any(True for folder in _folder_names(preparation) for _ in find_class_images(tree, folder))


def open_class_folders(tree: Tree, dataset: Dataset) -> Source:
    """``<folder>/<class>/<image>``: Caltech101, EuroSAT, RESISC45.

    Labels follow ``preparation.class_names``, or the sorted class folders where it names none; folders in
    ``preparation.skip`` are left out. Names are ``"<class>/<file>"`` as in the source, and there are no parts.

    Raises:
        InputError: Another set, a class without images, or an image that is there twice.
    """
    preparation = preparation_of(dataset)
    skip = {name.lower() for name in preparation.skip}
    images: list[ClassImage] = []
    for folder in _folder_names(preparation) if preparation.folder else [""]:
        images = [image for image in find_class_images(tree, folder) if image.folder.lower() not in skip]
        if images:
            break
    if not preparation.folder:
        images = _select_one_parent(tree, dataset, images)
    what = preparation.folder or dataset.name
    if not images:
        wanted = f"{preparation.folder}/<class>/" if preparation.folder else "<class>/"
        raise InputError(f"{tree.place} holds no images in {wanted}; it is another archive or folder.")
    images.sort(key=lambda image: (image.folder, image.file))
    check_unique(tree.place, (f"{image.folder}/{image.file}" for image in images))
    classes, labels = assign_class_labels(
        dataset, tree.place, what, {i.folder for i in images}, preparation.class_names
    )
    paths = {f"{image.folder}/{image.file}": image.path for image in images}
    prefixes = {image.prefix for image in images}
    check_depth(tree, prefixes, set(paths.values()), skip)
    key = _KEYS.get(preparation.folder)
    items = tuple(
        SourceImage(name, labels[image.folder], "", key.format(image.folder, image.file) if key else None)
        for name, image in zip(paths, images, strict=True)
    )
    return Source(
        items, classes, make_reader(tree, paths), base=common_folder(tree, prefixes), lossy=is_lossy(dataset, paths)
    )


def _select_one_parent(tree: Tree, dataset: Dataset, images: list[ClassImage]) -> list[ClassImage]:
    """The images of the one folder that holds the class folders, where its name is not known."""
    found: dict[str, set[str]] = {}
    for image in images:
        found.setdefault(image.prefix, set()).add(image.folder)
    fitting = [prefix for prefix, folders in found.items() if len(folders) == dataset.classes]
    if len(found) > 1 and len(fitting) != 1:
        raise InputError(
            f"{tree.place} holds images in folders at several places ({', '.join(sorted(p or './' for p in found)[:4])}"
            f"); give the folder that holds the {dataset.classes} class folders of {dataset.name}."
        )
    return [image for image in images if image.prefix in (fitting or found)]


# --- <part>/<class>/<image> ------------------------------------------------------------------------------------------

_PARTS = {"train": "train", "val": "val", "test": "test"}
_IMAGENET_PARTS = {"train": "train", "val": "test"}
"""The 50,000 validation images are what everybody scores; those of the test set have no public labels."""


def _part_names(preparation: Preparation) -> dict[str, str]:
    return _IMAGENET_PARTS if preparation.target == "imagenet" else _PARTS


def recognises_image_folder(tree: Tree, dataset: Dataset) -> bool:
    """Whether some image lies in ``<part>/<class>/``."""
    parts = _part_names(preparation_of(dataset))
    return any(path.rsplit("/", 3)[-3:-2] in ([part] for part in parts) and is_image(path) for path in tree.names)


def open_image_folder(tree: Tree, dataset: Dataset) -> Source:
    """``<part>/<class>/<image>`` with parts ``train``, ``val`` and ``test``, as torchvision's ``ImageFolder`` reads it.

    Labels follow ``preparation.class_names``, or the sorted class folders. With the target ``"imagenet"``, ``val`` is
    the part ``"test"``, and a folder ``test`` is left out. Names are ``"<part>/<class>/<file>"`` as in the source.

    Raises:
        InputError: No train or no test images, classes that differ between parts, images outside a class folder, or an
            image that is there twice.
    """
    preparation = preparation_of(dataset)
    parts = _part_names(preparation)
    found: dict[str, list[ClassImage]] = {part: [] for part in parts}
    loose: list[str] = []
    for path in tree.names:
        pieces = path.rsplit("/", 3)
        if len(pieces) >= 3 and pieces[-3] in parts and path.lower().endswith(UNREAD_SUFFIXES):
            raise InputError(f"{tree.place} holds {path}, a kind of image that is not read here; convert it to PNG.")
        if not is_image(path):
            continue
        if len(pieces) >= 3 and pieces[-3] in parts:
            prefix = path[: len(path) - sum(map(len, pieces[-3:])) - 2]
            found[pieces[-3]].append(ClassImage(path, prefix, pieces[-2], pieces[-1]))
        elif len(pieces) >= 2 and pieces[-2] in parts:
            loose.append(path)
    if loose:
        raise InputError(
            f"{tree.place}: image {loose[0]} lies in no class folder; sort the images of each part into one folder "
            "for each class."
        )
    for part, own in parts.items():
        if not found[part] and own != "val":
            raise InputError(f"{tree.place} holds no images in {part}/<class>/; give the complete folder or archive.")
    prefixes = {image.prefix for images in found.values() for image in images}
    if len(prefixes) > 1:
        raise InputError(
            f"{tree.place} holds several sets of images ({', '.join(sorted(p or './' for p in prefixes)[:4])}); "
            "give one of them."
        )
    (prefix,) = prefixes
    classes, labels = assign_class_labels(
        dataset, tree.place, dataset.name, {image.folder for image in found["train"]}, preparation.class_names
    )
    items: list[SourceImage] = []
    paths: dict[str, str] = {}
    for part, images in found.items():
        for folder in sorted({image.folder for image in images} ^ labels.keys()) if images else ():
            state = "is not a class of train/" if folder not in labels else "has no images"
            raise InputError(f"{tree.place}: class folder {folder!r} of {part}/ {state}; give the complete set.")
        for image in images:
            name = image.path[len(prefix) :]
            items.append(SourceImage(name, labels[image.folder], parts[part]))
            paths[name] = image.path
    check_unique(tree.place, paths)
    check_depth(tree, [f"{prefix}{part}/" for part in parts], set(paths.values()))
    return Source(
        tuple(items),
        classes,
        make_reader(tree, paths),
        base=common_folder(tree, prefixes),
        lossy=is_lossy(dataset, paths),
    )


# --- UCF101 ----------------------------------------------------------------------------------------------------------

UCF101_FOLDER = "UCF-101-midframes"
_UCF101_LISTS = ("classInd.txt", "trainlist01.txt", "testlist01.txt")
_UCF101_GROUPS, _UCF101_TEST_GROUPS = 25, 7
_VIDEO = re.compile(r"v_([A-Za-z0-9]+)_g([0-9]{1,4})_c([0-9]+)")


def _normalise_name(name: str) -> str:
    """``Jump_Rope`` (a folder) and ``JumpRope`` (UCF101's own lists) alike."""
    return name.replace("_", "").lower()


def recognises_ucf101(tree: Tree, dataset: Dataset) -> bool:
    """Whether the tree is, or has, the folder of middle frames."""
    folder = preparation_of(dataset).folder or UCF101_FOLDER
    return bool(missing_parents(tree, folder) or tree.files_under(folder))


def open_ucf101(tree: Tree, dataset: Dataset) -> Source:
    """``UCF-101-midframes/<Class_Name>/v_<ClassName>_gXX_cYY.jpg``: CoOp's middle frames of UCF101's videos.

    Labels are UCF101's own numbers (``classInd.txt``: class names sorted without regard to case), and parts are its
    first split: videos of groups 1 to 7 are test. Where ``classInd.txt``, ``trainlist01.txt`` and ``testlist01.txt``
    are in the source, they decide. Names are ``"<Class_Name>/<file>"``.

    Raises:
        InputError: Another set, file names of another kind, or lists that do not fit the images.
    """
    folder = preparation_of(dataset).folder or UCF101_FOLDER
    images = list(find_class_images(tree, folder))
    if not images:
        raise InputError(f"{tree.place} holds no images in {folder}/<Class_Name>/; it is another archive or folder.")
    check_unique(tree.place, (f"{image.folder}/{image.file}" for image in images))
    folders = sorted({image.folder for image in images}, key=_normalise_name)
    listed: dict[str, str] | None = None
    if any(tree.has(name) for name in _UCF101_LISTS):
        order, listed = _read_ucf101_lists(tree)
        found = {_normalise_name(name): name for name in folders}
        # A class without a folder keeps its own name, which class_labels then misses.
        folders = [found.get(_normalise_name(name), name) for name in order]
    classes, labels = assign_class_labels(dataset, tree.place, folder, {image.folder for image in images}, folders)
    items: list[SourceImage] = []
    paths: dict[str, str] = {}
    for image in images:
        name = f"{image.folder}/{image.file}"
        video = PurePosixPath(image.file).stem
        match = _VIDEO.fullmatch(video)
        if (
            match is None
            or _normalise_name(match[1]) != _normalise_name(image.folder)
            or not 1 <= int(match[2]) <= _UCF101_GROUPS
        ):
            raise InputError(
                f"{tree.place}: {name} is not called v_{image.folder.replace('_', '')}_gXX_cYY with XX from 01 to "
                f"{_UCF101_GROUPS}; it is another set."
            )
        if listed is None:
            part = "test" if int(match[2]) <= _UCF101_TEST_GROUPS else "train"
        else:
            part = listed.pop(video.lower(), "")
            if not part:
                raise InputError(f"{tree.place}: {name} is in neither {' nor '.join(_UCF101_LISTS[1:])}; correct them.")
        items.append(SourceImage(name, labels[image.folder], part))
        paths[name] = image.path
    if listed:
        raise InputError(
            f"{tree.place} holds no frame of {min(listed)}, which its lists name ({len(listed)} are missing); "
            "download it again."
        )
    prefixes = {image.prefix for image in images}
    check_depth(tree, prefixes, set(paths.values()))
    return Source(tuple(items), classes, make_reader(tree, paths), base=common_folder(tree, prefixes))


def _read_ucf101_lists(tree: Tree) -> tuple[list[str], dict[str, str]]:
    """Class names in label order, and part per video in lower case."""
    index, *lists = (tree.find(name) for name in _UCF101_LISTS)
    order: list[str] = []
    for number, line in read_lines(tree, index):
        position, _, name = line.partition(" ")
        if position != str(len(order) + 1) or not name:
            raise InputError(f"{tree.place}, {index}:{number}: expected '{len(order) + 1} <class>', not {line!r}.")
        order.append(name.strip())
    numbers = {_normalise_name(name): i for i, name in enumerate(order, 1)}
    if len(numbers) != len(order):
        raise InputError(f"{tree.place}, {index} names a class twice; download it again.")
    parts: dict[str, str] = {}
    for path, part in zip(lists, ("train", "test"), strict=True):
        for number, line in read_lines(tree, path):
            video, _, label = line.partition(" ")
            folder, _, file = video.rpartition("/")
            if _normalise_name(folder) not in numbers or label not in ("", str(numbers[_normalise_name(folder)])):
                raise InputError(f"{tree.place}, {path}:{number}: {line!r} does not fit the classes of {index}.")
            stem = PurePosixPath(file).stem.lower()
            if stem in parts:
                raise InputError(f"{tree.place}, {path}:{number}: {video} is listed twice.")
            parts[stem] = part
    return order, parts


READERS = (
    Reader("class_folders", recognises_class_folders, open_class_folders),
    Reader("image_folder", recognises_image_folder, open_image_folder),
    Reader("ucf101", recognises_ucf101, open_ucf101),
    *LISTED_READERS,
)

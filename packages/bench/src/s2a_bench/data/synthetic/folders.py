"""Miniature Caltech101, EuroSAT, RESISC45, ImageNet, UCF101, SUN397 and DomainNet, in the files people download."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from s2a_bench.data.readers.folders import UCF101_FOLDER
from s2a_bench.data.readers.folders_listed import SUN397_FOLDER, SUN397_LISTS
from s2a_bench.data.synthetic.pictures import draw_picture, encode_jpeg
from s2a_bench.data.table.types import Dataset

Plan = Mapping[str, tuple[int, ...]]

_EUROSAT = """AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River
    SeaLake""".split()
_RESISC45 = """airplane airport baseball_diamond basketball_court beach bridge chaparral church circular_farmland cloud
    commercial_area dense_residential desert forest freeway golf_course ground_track_field harbor industrial_area
    intersection island lake meadow medium_residential mobile_home_park mountain overpass palace parking_lot railway
    railway_station rectangular_farmland river roundabout runway sea_ice ship snowberg sparse_residential stadium
    storage_tank tennis_court terrace thermal_power_station wetland""".split()
_CAPITALS = ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes")
"""Folders of Caltech101 that its makers did not write in small letters."""
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


# --- Packing ---------------------------------------------------------------------------------------------------------


class _AddFile(Protocol):
    def __call__(self, name: str, content: bytes) -> None: ...


@contextmanager
def _open_tar_gz(raw: IO[bytes]) -> Iterator[_AddFile]:
    """Writes a ``.tar.gz`` that depends on names and contents alone."""
    with (
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)  # of 1970, of nobody
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        yield add


@contextmanager
def _open_zip(raw: IO[bytes]) -> Iterator[_AddFile]:
    """Writes a ``.zip`` that depends on names and contents alone; JPEGs do not shrink, so nothing is compressed."""
    with zipfile.ZipFile(raw, "w") as archive:
        yield lambda name, content: archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content)


@contextmanager
def _open_folder(place: Path) -> Iterator[_AddFile]:
    made: set[Path] = set()

    def add(name: str, content: bytes) -> None:
        path = place / name
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(content)

    yield add


@contextmanager
def open_archive(path: Path) -> Iterator[_AddFile]:
    """Writes a ``.zip`` or ``.tar.gz``, as the suffix says; yields the function that adds a file."""
    with path.open("wb") as raw, (_open_zip if path.suffix == ".zip" else _open_tar_gz)(raw) as add:
        yield add


def make_jpeg(dataset: Dataset, label: int, index: int, seed: int, side: int = 16) -> bytes:
    """A square JPEG file of the picture with this label and index."""
    return encode_jpeg(draw_picture(label, index, dataset.classes, (side, side), seed))


def _archive_names(dataset: Dataset) -> tuple[str, ...]:
    assert dataset.preparation is not None
    return dataset.preparation.archives


def iterate_images(plan: Plan, *parts: str) -> Iterator[tuple[str, int, int, int]]:
    """Part, label, number within part and class, and index within the dataset, of every image."""
    index = 0
    for part in parts:
        for label, count in enumerate(plan.get(part, ())):
            for number in range(count):
                yield part, label, number, index
                index += 1


def _letters(number: int, length: int) -> str:
    """A number in small letters: 0 is ``"aa"``, 27 is ``"bb"``."""
    out = ""
    for _ in range(length):
        number, rest = divmod(number, 26)
        out = chr(ord("a") + rest) + out
    return out


# --- Makers ----------------------------------------------------------------------------------------------------------


def make_class_folders(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """Class folders in ``preparation.folder``, in the first of ``preparation.archives`` or in a plain folder.

    Like the real one, Caltech's zip holds another archive, a file that is no image and the folders of
    ``preparation.skip``.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of ``""``.
        seed: Of the pictures.
    """
    preparation = dataset.preparation
    assert preparation is not None
    archives = _archive_names(dataset)
    inner = f"{preparation.folder}.tar.gz"
    if not archives:
        with _open_folder(place) as add:
            _write_classes(dataset, plan, seed, add)
    elif archives[0].endswith(".zip") and inner in archives and PurePosixPath(archives[0]).stem != preparation.folder:
        # The inner archive is written to disk first: a zip's members cannot be seen twice.
        temporary = place / inner
        with open_archive(temporary) as add:
            _write_classes(dataset, plan, seed, add)
        home = PurePosixPath(archives[0]).stem
        with open_archive(place / archives[0]) as add:
            add(f"{home}/{inner}", temporary.read_bytes())
            add(f"{home}/show_annotation.m", b"% not an image\n")
            add(f"__MACOSX/{home}/._{inner}", b"not an archive")
        temporary.unlink()
    else:
        with open_archive(place / archives[0]) as add:
            _write_classes(dataset, plan, seed, add)


def _write_classes(dataset: Dataset, plan: Plan, seed: int, add: _AddFile) -> None:
    preparation = dataset.preparation
    assert preparation is not None
    own = {"2750": _EUROSAT, "NWPU-RESISC45": _RESISC45}.get(preparation.folder, [])
    names = preparation.class_names or (own if len(own) == dataset.classes else ())
    names = names or [f"class_{i:03d}" for i in range(dataset.classes)]
    shown = {name.lower(): name for name in _CAPITALS} if preparation.folder == "101_ObjectCategories" else {}
    pattern = {"2750": "{}_{}.jpg", "NWPU-RESISC45": "{}_{:03d}.jpg"}.get(preparation.folder, "image_{1:04d}.jpg")
    home = f"{preparation.folder}/" if preparation.folder else ""
    total = 0
    for _, label, number, index in iterate_images(plan, ""):
        folder = shown.get(names[label].lower(), names[label])
        add(f"{home}{folder}/{pattern.format(folder, number + 1)}", make_jpeg(dataset, label, index, seed))
        total += 1
    for i, folder in enumerate(preparation.skip):
        for number in range(2):
            content = make_jpeg(dataset, 0, total + 2 * i + number, seed)
            add(f"{home}{folder}/{pattern.format(folder, number + 1)}", content)
    if shown:
        add(f"{home}BACKGROUND_Google/tmp", b"")


def make_image_folder(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``train/``, ``val/`` and ``test/`` of class folders: a folder, or the first of ``preparation.archives``.

    With the target ``"imagenet"``, the test images of the plan are in ``val/``, and names are ImageNet's.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of ``"train"``, ``"test"`` and perhaps ``"val"``.
        seed: Of the pictures.
    """
    preparation = dataset.preparation
    assert preparation is not None
    imagenet = preparation.target == "imagenet"
    archives = _archive_names(dataset)
    with open_archive(place / archives[0]) if archives else _open_folder(place) as add:
        add("README.md", b"Made-up images.\n")
        numbers: dict[str, int] = {}
        for part, label, number, index in iterate_images(plan, "train", "val", "test"):
            numbers[part] = numbers.get(part, 0) + 1
            if not imagenet:
                folder = preparation.class_names[label] if preparation.class_names else f"class_{label:03d}"
                name = f"{part}/{folder}/{number:04d}.jpg"
            else:
                folder = f"n{1440764 + 1009 * label:08d}"
                file = f"{folder}_{number + 1}" if part == "train" else f"ILSVRC2012_val_{numbers[part]:08d}"
                name = f"{'train' if part == 'train' else 'val'}/{folder}/{file}.JPEG"
            side = 32 if dataset.encoding == "lossless" else 16
            add(name, make_jpeg(dataset, label, index, seed, side))


def make_ucf101(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``UCF-101-midframes.zip``; training images are in groups 8 to 25, test images in groups 1 to 7.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of ``"train"`` and ``"test"``.
        seed: Of the pictures.
    """
    archives = _archive_names(dataset)
    with open_archive(place / archives[0]) if archives else _open_folder(place) as add:
        for part, label, number, index in iterate_images(plan, "train", "test"):
            name = f"Action_{_letters(label, 3).title()}"
            first, groups = (8, 18) if part == "train" else (1, 7)
            video = f"v_{name.replace('_', '')}_g{first + number % groups:02d}_c{1 + number // groups:02d}"
            add(f"{UCF101_FOLDER}/{name}/{video}.jpg", make_jpeg(dataset, label, index, seed))


def make_sun397(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``SUN397.tar.gz`` with ``ClassName.txt``, and tensorflow_datasets' three lists of parts next to it.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of ``"train"``, ``"val"`` and ``"test"``.
        seed: Of pictures and names.
    """
    archives = _archive_names(dataset)
    kinds = ("", "/indoor", "/outdoor")
    classes = sorted(
        f"/{chr(ord('a') + i % 26)}/{chr(ord('a') + i % 26)}_scene_{i:03d}{kinds[i % 3]}"
        for i in range(dataset.classes)
    )
    lists: dict[str, list[str]] = {part: [] for part in SUN397_LISTS}
    with open_archive(place / archives[0]) if archives else _open_folder(place) as add:
        add(f"{SUN397_FOLDER}/ClassName.txt", "".join(f"{name}\n" for name in classes).encode())
        for part, label, _, index in iterate_images(plan, *SUN397_LISTS):
            # As random as the real names, and never the same twice.
            draw = int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:8])
            name = f"{classes[label]}/sun_{_letters(draw, 9)}{_letters(index, 6)}.jpg"
            lists[part].append(name)
            add(f"{SUN397_FOLDER}{name}", make_jpeg(dataset, label, index, seed))
    for part, names in lists.items():
        (place / SUN397_LISTS[part]).write_bytes("".join(f"{name}\n" for name in sorted(names)).encode())


def make_domainnet(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``<domain>.zip`` with ``<domain>_train.txt`` and ``<domain>_test.txt`` next to it.

    Args:
        dataset: Row of the table; ``preparation.target`` is the domain.
        place: Folder to write to.
        plan: Images per class of ``"train"`` and ``"test"``.
        seed: Of the pictures.
    """
    assert dataset.preparation is not None
    domain, archives = dataset.preparation.target, _archive_names(dataset)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    numbers = [0] * dataset.classes
    with open_archive(place / archives[0]) if archives else _open_folder(place) as add:
        for part, label, _, index in iterate_images(plan, *lists):
            numbers[label] += 1
            name = f"{domain}/object_{label:03d}/{domain}_{label + 1:03d}_{numbers[label]:06d}.jpg"
            lists[part].append(f"{name} {label}\n")
            add(name, make_jpeg(dataset, label, index, seed))
    for part, lines in lists.items():
        (place / f"{domain}_{part}.txt").write_bytes("".join(lines).encode())


MAKERS = {
    "class_folders": make_class_folders,
    "image_folder": make_image_folder,
    "ucf101": make_ucf101,
    "sun397": make_sun397,
    "domainnet": make_domainnet,
}

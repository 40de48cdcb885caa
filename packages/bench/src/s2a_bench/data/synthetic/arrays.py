"""Miniature CIFAR, SVHN, PatchCamelyon, dSprites and smallNORB, in the files that people download."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from s2a_bench.data.readers.arrays_big import DSPRITES_FILE, NORB_BYTES, NORB_FILES, NORB_INTS
from s2a_bench.data.synthetic.pictures import draw_grey_picture, draw_picture, report_picture
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError

Plan = Mapping[str, tuple[int, ...]]


def _shuffle_labels(plan: tuple[int, ...], seed: int, part: int) -> np.ndarray:
    """``(N,)`` labels of a part, as many of each class as planned, in no order."""
    labels = np.repeat(np.arange(len(plan)), plan)
    return np.random.default_rng((seed, part)).permutation(labels)


@contextmanager
def _open_gzip(path: Path) -> Iterator[IO[bytes]]:
    """A gzip file to write that depends on its content alone: no name and no time."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as out:
        yield out  # type: ignore[misc]


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def make_cifar(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``cifar-10-python.tar.gz`` where the dataset has 10 classes, ``cifar-100-python.tar.gz`` otherwise.

    Args:
        dataset: Row of the table; its first archive names the file.
        place: Folder to write to.
        plan: Images per class of ``"train"`` and ``"test"``.
        seed: Of pictures and their order.
    """
    ten = dataset.classes == 10
    folder = "cifar-10-batches-py" if ten else "cifar-100-python"
    archives = dataset.preparation.archives if dataset.preparation else ()
    path = place / (archives[0] if archives else f"cifar-{10 if ten else 100}-python.tar.gz")
    with _open_gzip(path) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        start = 0
        for number, part in enumerate(("train", "test")):
            labels = _shuffle_labels(plan[part], seed, number)
            files = [
                "test_batch" if part == "test" else f"data_batch_{i}" for i in range(1, 6 if part == "train" else 2)
            ]
            files = files if ten else [part]
            for file, positions in zip(files, np.array_split(np.arange(len(labels)), len(files)), strict=True):
                batch = _make_batch(dataset, labels[positions], start + positions, file, seed)
                _add_file(archive, f"{folder}/{file}", _python2_pickle(batch))
            start += len(labels)
        if ten:
            meta: dict[str, Any] = {
                "num_cases_per_batch": -(-sum(plan["train"]) // 5),
                "label_names": _numbered_names("class", 10),
                "num_vis": 3072,
            }
        else:
            meta = {
                "fine_label_names": _numbered_names("fine", len(plan["train"])),
                "coarse_label_names": _numbered_names("coarse", 20),
            }
        _add_file(archive, f"{folder}/{'batches.meta' if ten else 'meta'}", _python2_pickle(meta))


def _numbered_names(word: str, count: int) -> list[str]:
    return [f"{word}_{i:02d}" for i in range(count)]


def _make_batch(dataset: Dataset, labels: np.ndarray, indices: np.ndarray, file: str, seed: int) -> dict[str, Any]:
    data = np.empty((len(labels), 3072), np.uint8)
    for row, label, index in zip(data, labels.tolist(), indices.tolist(), strict=True):
        row[:] = draw_picture(label, index, dataset.classes, (32, 32), seed).transpose(2, 0, 1).reshape(-1)
    column = labels.tolist()
    batch: dict[str, Any] = {"data": data, "batch_label": f"batch of {file}"}
    if dataset.classes == 10:
        batch["labels"] = column
    else:
        batch["fine_labels"] = column
        batch["coarse_labels"] = [label * 20 // dataset.classes for label in column]
    return batch | {"filenames": [f"{label}_{index:06d}.png" for label, index in zip(column, indices, strict=True)]}


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.mtime = 1234567890  # the same for all, and late enough for a zip to take it
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _python2_pickle(value: Any) -> bytes:
    """Protocol 2 as Python 2 with NumPy 1 wrote it, byte strings and old module names included.

    Today's ``pickle`` writes neither, and these are what makes CIFAR's files hard to read.
    """
    out = [b"\x80\x02"]
    _write_pickled(value, out)
    return b"".join([*out, b"."])


def _write_pickled(value: Any, out: list[bytes]) -> None:
    match value:
        case None:
            out.append(b"N")
        case bool():
            out.append(b"\x88" if value else b"\x89")
        case int():
            out.append(b"J" + struct.pack("<i", value))
        case str() | bytes():
            data = value.encode() if isinstance(value, str) else value
            out += [
                b"U" + struct.pack("<B", len(data)) if len(data) < 256 else b"T" + struct.pack("<i", len(data)),
                data,
            ]
        case list() | tuple():
            out.append(b"(" if isinstance(value, tuple) else b"](")
            for item in value:
                _write_pickled(item, out)
            out.append(b"t" if isinstance(value, tuple) else b"e")
        case dict():
            out.append(b"}(")
            for key, item in value.items():
                _write_pickled(key, out)
                _write_pickled(item, out)
            out.append(b"u")
        case np.ndarray():
            assert value.dtype == np.uint8
            out.append(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n")
            _write_pickled((0,), out)
            _write_pickled("b", out)
            out.append(b"tR(")
            _write_pickled(1, out)
            _write_pickled(value.shape, out)
            out.append(b"cnumpy\ndtype\n")
            _write_pickled(("u1", 0, 1), out)
            out.append(b"R")
            _write_pickled((3, "|", None, None, None, -1, -1, 0), out)
            out.append(b"b")
            _write_pickled(False, out)
            _write_pickled(value.tobytes(), out)
            out.append(b"tb")
        case _:
            raise TypeError(type(value).__name__)


# --- SVHN ------------------------------------------------------------------------------------------------------------


def make_svhn(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``train_32x32.mat`` and ``test_32x32.mat``, in which the digit 0 has the label 10.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of ``"train"`` and ``"test"``.
        seed: Of pictures and their order.
    """
    import scipy.io

    start = 0
    for number, part in enumerate(("train", "test")):
        labels = _shuffle_labels(plan[part], seed, number)
        images = np.empty((32, 32, 3, len(labels)), np.uint8, order="F")
        for i, label in enumerate(labels.tolist()):
            images[..., i] = draw_picture(label, start + i, dataset.classes, (32, 32), seed)
        start += len(labels)
        path = place / f"{part}_32x32.mat"
        column = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(path, {"X": images, "y": column}, do_compression=True)
        with path.open("r+b") as file:  # scipy writes the time into the 116 bytes of text at the start
            file.write(b"MATLAB 5.0 MAT-file, synthetic".ljust(116))


# --- PatchCamelyon ---------------------------------------------------------------------------------------------------


def make_pcam(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """The six ``camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5.gz``.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of ``"train"``, ``"val"`` and ``"test"``.
        seed: Of pictures and their order.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            "PatchCamelyon's .h5 files need h5py, which is not installed: pip install 's2a-bench[data]'."
        ) from error

    start = 0
    for number, (part, word) in enumerate({"train": "train", "val": "valid", "test": "test"}.items()):
        labels = _shuffle_labels(plan[part], seed, number)
        for half in "xy":
            path = place / f"camelyonpatch_level_2_split_{word}_{half}.h5"
            with h5py.File(_create_hdf5(path)) as file:
                if half == "y":
                    file.create_dataset("y", data=labels.astype(np.uint8).reshape(-1, 1, 1, 1), track_times=False)
                else:
                    images = file.create_dataset("x", (len(labels), 96, 96, 3), np.uint8, track_times=False)
                    for first in range(0, len(labels), 256):
                        images[first : first + 256] = np.stack(
                            [
                                draw_picture(label, start + first + i, dataset.classes, (96, 96), seed)
                                for i, label in enumerate(labels[first : first + 256].tolist())
                            ]
                        )
            with path.open("rb") as plain, _open_gzip(path.with_name(f"{path.name}.gz")) as out:
                shutil.copyfileobj(plain, out, 1 << 20)
            path.unlink()
        start += len(labels)


def _create_hdf5(path: Path) -> Any:
    """A new HDF5 file in which no time is written: h5py before 3.16 puts those of the root group into it."""
    import h5py

    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    return h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, fcpl=creation, fapl=access)


# --- dSprites --------------------------------------------------------------------------------------------------------

_SPRITES = (1, 3, 6, 40, 32, 32)


def make_dsprites(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """DSprites' ``.npz`` with as many points of its grid as planned in all; positions and angles occur equally often.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Its sum is the number of images, 737,280 at most.
        seed: Of the choice of points.
    """
    total = _check_total(plan, 737280)
    k = np.arange(total)
    # 1,280 pairs of 32 positions and 40 angles: any 160 in a row hold every position 5 times, every angle 4 times.
    turn, pair = np.divmod(k, 1280)
    x, angle = pair % 32, (pair + pair // 160) % 40
    shape, scale, y = np.unravel_index(np.random.default_rng(seed).permutation(576)[(turn + pair) % 576], (3, 6, 32))
    grid = np.sort(np.ravel_multi_index((np.zeros_like(k), shape, scale, angle, x, y), _SPRITES))
    latents = np.stack(np.unravel_index(grid, _SPRITES), axis=1).astype(np.int64)
    with zipfile.ZipFile(place / DSPRITES_FILE, "w") as archive:
        with _open_npy_member(archive, "imgs", (total, 64, 64), "|u1") as out:
            for images in _draw_sprites(grid, latents):
                out.write(images.tobytes())
        with _open_npy_member(archive, "latents_classes", latents.shape, "<i8") as out:
            out.write(latents.astype("<i8").tobytes())
        with _open_npy_member(archive, "latents_values", latents.shape, "<f8") as out:
            values = latents / np.maximum(np.array(_SPRITES) - 1, 1) * [1, 2, 0.5, 2 * np.pi, 1, 1] + [
                1,
                1,
                0.5,
                0,
                0,
                0,
            ]
            out.write(values.astype("<f8").tobytes())
        # The original's is a pickle as well, which nobody needs to open.
        with archive.open(_zip_info("metadata"), "w") as out:
            metadata = np.array({"title": "synthetic", "latents_sizes": np.array(_SPRITES)}, dtype=object)
            np.lib.format.write_array(out, metadata, version=(1, 0), allow_pickle=True)


def _check_total(plan: Plan, most: int) -> int:
    total = sum(sum(counts) for counts in plan.values())
    if not 0 < total <= most:
        raise ValueError(f"The plan has {total} images; 1 to {most} are possible.")
    return total


def _zip_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{name}.npy")  # of 1980
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


@contextmanager
def _open_npy_member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], kind: str) -> Iterator[IO[bytes]]:
    with archive.open(_zip_info(name), "w", force_zip64=True) as out:
        np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
        yield out


def _draw_sprites(grid: np.ndarray, latents: np.ndarray) -> Iterator[np.ndarray]:
    """``(n, 64, 64)`` uint8 of 0 and 1; a row at the bottom spells the point of the grid, so that no two agree."""
    for rows in np.split(np.arange(len(grid)), np.flatnonzero(np.diff(grid // 1024)) + 1):
        images = np.zeros((len(rows), 64, 64), np.uint8)
        _, shape, scale, angle, _, _ = latents[rows[0]].tolist()
        sprite = _draw_sprite(shape, 8 + scale, 2 * np.pi * angle / 40)
        for image, (x, y) in zip(images, latents[rows, 4:].tolist(), strict=True):
            image[y : y + 30, x : x + 30] = sprite
            report_picture()
        images[:, 63, :20] = grid[rows, None] >> np.arange(20) & 1
        yield images


def _draw_sprite(shape: int, radius: float, angle: float) -> np.ndarray:
    """A square, an ellipse or a drop, as ``(30, 30)`` of 0 and 1, rotated by an angle; a notch shows its direction."""
    y, x = np.mgrid[-14.5:15, -14.5:15]
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if shape == 0:
        inside = np.maximum(abs(u), abs(v)) <= 0.75 * radius
    elif shape == 1:
        inside = u**2 + (1.6 * v) ** 2 <= radius**2
    else:
        inside = (u**2 + v**2 <= (0.6 * radius) ** 2) | ((abs(v) <= 0.4 * (radius - u)) & (u >= 0) & (u <= radius))
    return (inside & ~((u > 0.2 * radius) & (abs(v) < 1.5))).astype(np.uint8)


# --- smallNORB -------------------------------------------------------------------------------------------------------

_TOYS = {"train": (4, 6, 7, 8, 9), "test": (0, 1, 2, 3, 5)}


def make_smallnorb(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """The six ``smallnorb-*.mat.gz``; azimuths and elevations occur equally often.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: The sums of ``"train"`` and ``"test"`` are their numbers of images, 24,300 at most each.
        seed: Of pictures and their order.
    """
    start = 0
    for number, (part, toys) in enumerate(_TOYS.items()):
        total = _check_total({part: plan[part]}, 24300)
        rng = np.random.default_rng((seed, number))
        turn, view = np.divmod(rng.permutation(total), 162)
        azimuth, elevation = view % 18, (view + view // 18) % 9
        category, toy, light = np.unravel_index(rng.permutation(150)[(turn + view) % 150], (5, 5, 6))
        info = np.stack([np.array(toys)[toy], elevation, 2 * azimuth, light], axis=1)
        with _open_matrix(place, part, "cat", NORB_INTS, (total,)) as out:
            out.write(category.astype("<i4").tobytes())
        with _open_matrix(place, part, "info", NORB_INTS, (total, 4)) as out:
            out.write(info.astype("<i4").tobytes())
        with _open_matrix(place, part, "dat", NORB_BYTES, (total, 2, 96, 96)) as out:
            for i, (turned, raised) in enumerate(zip(azimuth.tolist(), elevation.tolist(), strict=True)):
                upper = draw_grey_picture(turned, start + i, 18, (96, 48), seed)
                left = np.concatenate([upper, draw_grey_picture(raised, start + i, 9, (96, 48), seed)])
                out.write(left.tobytes() + np.roll(left, 3, axis=1).tobytes())
        start += total


@contextmanager
def _open_matrix(place: Path, part: str, half: str, magic: int, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    with _open_gzip(place / f"{NORB_FILES[part].format(half)}.gz") as out:
        dims = [*shape, *[1] * (3 - len(shape))]
        out.write(struct.pack(f"<{2 + len(dims)}i", magic, len(shape), *dims))
        yield out


MAKERS: dict[str, Callable[[Dataset, Path, Plan, int], None]] = {
    "cifar": make_cifar,
    "svhn": make_svhn,
    "patch_camelyon": make_pcam,
    "dsprites": make_dsprites,
    "smallnorb": make_smallnorb,
}

"""CIFAR, SVHN, PatchCamelyon, dSprites and smallNORB: every packing, against other readers, and broken in many ways."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import pickle
import shutil
import struct
import sys
import tarfile
import tracemalloc
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image
from s2a_bench.dataset_types import Counts, Dataset, Official, Recipe
from s2a_bench.errors import InputError
from s2a_bench.sources.arrays import READERS
from s2a_bench.sources.items import Source
from s2a_bench.sources.tree import Tree
from s2a_bench.synthetic.arrays import MAKERS

h5py = pytest.importorskip("h5py")

OPEN = {reader.name: reader for reader in READERS}
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
NORB = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training-{}.mat",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing-{}.mat",
}
PCAM = "camelyonpatch_level_2_split_{}_{}.h5"


def row(reader: str, classes: int, target: str = "", archives: tuple[str, ...] = ()) -> Dataset:
    recipe = Recipe(reader, Official(), archives, target=target)
    return Dataset("tiny", "whole", "whole", classes, Counts(None, None, None, None), "", "", "", recipe=recipe)


ROWS = {
    "cifar10": row("cifar", 10, "fine", ("cifar-10-python.tar.gz",)),
    "cifar100": row("cifar", 100, "fine", ("cifar-100-python.tar.gz",)),
    "svhn": row("svhn", 10),
    "pcam": row("patch_camelyon", 2),
    "dsprites_loc": row("dsprites", 16, "x_position"),
    "dsprites_ori": row("dsprites", 16, "orientation"),
    "norb_azi": row("smallnorb", 18, "azimuth"),
    "norb_ele": row("smallnorb", 9, "elevation"),
}
PLANS = {
    "cifar10": {"train": (2, 3) * 5, "test": (1, 2) * 5},
    "cifar100": {"train": (2,) * 100, "test": (1,) * 100},
    "svhn": {"train": (3, 2) * 5, "test": (2,) * 10},
    "pcam": {"train": (4, 3), "val": (2, 3), "test": (3, 3)},
    "dsprites_loc": {"": (40,) * 16},
    "dsprites_ori": {"": (40,) * 16},
    "norb_azi": {"train": (3,) * 18, "test": (2,) * 18},
    "norb_ele": {"train": (6,) * 9, "test": (4,) * 9},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    places = {}
    for name, dataset in ROWS.items():
        places[name] = tmp_path_factory.mktemp(name)
        assert dataset.recipe is not None
        MAKERS[dataset.recipe.reader](dataset, places[name], PLANS[name], 5)
    return places


def opened(dataset: Dataset, place: Path, then: Callable[[Source], Any]) -> Any:
    assert dataset.recipe is not None
    with Tree(place, dataset.recipe.archives) as tree:
        reader = OPEN[dataset.recipe.reader]
        assert reader.recognises(tree, dataset)
        return then(reader.open(tree, dataset))


def whole(source: Source) -> tuple[Any, dict[str, bytes]]:
    names = [item.name for item in source.items]
    assert len(set(names)) == len(names)
    files = list(source.read(frozenset(names)))
    assert sorted(name for name, _ in files) == sorted(names)
    return (source.items, source.classes), dict(files)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def unpacked(place: Path, to: Path) -> Path:
    """What extracting the downloads gives."""
    to.mkdir()
    for path in place.iterdir():
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                archive.extractall(to, filter="data")
        elif path.suffix == ".gz":
            (to / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copy(path, to)
    return to


# --- Packings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_every_packing_gives_the_same_images(name: str, made: dict[str, Path], tmp_path: Path):
    downloads = made[name]
    plain = unpacked(downloads, tmp_path / "plain")
    deep = tmp_path / "deep"
    shutil.copytree(plain, deep / "some" / "folder")
    zipped = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", plain))
    tarred = Path(shutil.make_archive(str(tmp_path / "tarred"), "gztar", plain))
    packings = [plain, deep, zipped, tarred]
    if len(files := list(downloads.iterdir())) == 1:
        packings += files
    if len(folders := [path for path in plain.iterdir() if path.is_dir()]) == 1:
        packings += folders
    expected = opened(ROWS[name], downloads, whole)
    assert expected[1]
    for place in packings:
        assert opened(ROWS[name], place, whole) == expected, place


def test_other_files_are_not_recognised(tmp_path: Path):
    for name in ("train/a.png", "test/b.png", "train_x.h5", "extra_32x32.mat", "data.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with Tree(tmp_path) as tree:
        for dataset in ROWS.values():
            assert dataset.recipe is not None
            assert not OPEN[dataset.recipe.reader].recognises(tree, dataset)


def test_a_folder_with_both_cifars_gives_the_one_that_is_asked_for(made: dict[str, Path], tmp_path: Path):
    for name in ("cifar10", "cifar100"):
        unpacked(made[name], tmp_path / name)
    for name in ("cifar10", "cifar100"):
        assert opened(ROWS[name], tmp_path, whole) == opened(ROWS[name], made[name], whole)


@pytest.mark.parametrize("name", ROWS)
def test_some_names_give_those_images_only(name: str, made: dict[str, Path]):
    _, files = opened(ROWS[name], made[name], whole)
    some = frozenset(list(files)[1::3])
    assert opened(ROWS[name], made[name], lambda s: dict(s.read(some))) == {n: files[n] for n in some}
    assert opened(ROWS[name], made[name], lambda s: list(s.read(frozenset()))) == []
    prefix = max(files).rpartition("/")
    for absent in (f"{prefix[0]}{prefix[1]}999999.png", "x.png", f"extra/{prefix[2]}", f"{max(files)}x", "0000001.png"):
        with pytest.raises(InputError, match="image"):
            opened(ROWS[name], made[name], lambda s, absent=absent: list(s.read(frozenset({absent}))))


# --- Against other readers -------------------------------------------------------------------------------------------


def same_as(files: dict[str, bytes], items: Any, part: str, images: Any, labels: Any):
    mine = [item for item in items if item.part == part]
    prefix = f"{part}/" if part else ""
    assert [item.name for item in mine] == [f"{prefix}{i:06d}.png" for i in range(len(labels))]
    assert [item.label for item in mine] == [int(label) for label in labels]
    for item, image in zip(mine, images, strict=True):
        np.testing.assert_array_equal(pixels(files[item.name]), np.asarray(image))


class _Cifar10(torchvision.datasets.CIFAR10):
    meta = torchvision.datasets.CIFAR10.meta | {"md5": None}

    def _check_integrity(self) -> bool:
        return True


class _Cifar100(torchvision.datasets.CIFAR100):
    meta = torchvision.datasets.CIFAR100.meta | {"md5": None}

    def _check_integrity(self) -> bool:
        return True


class _Svhn(torchvision.datasets.SVHN):
    def _check_integrity(self) -> bool:
        return True


@pytest.mark.parametrize(("name", "oracle"), [("cifar10", _Cifar10), ("cifar100", _Cifar100)])
def test_cifar_is_as_torchvision_reads_it(name: str, oracle: Any, made: dict[str, Path], tmp_path: Path):
    (items, classes), files = opened(ROWS[name], made[name], whole)
    plain = unpacked(made[name], tmp_path / "plain")
    for part in ("train", "test"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's about the 0 and 1 that its old self wrote for booleans
            theirs = oracle(plain, train=part == "train")
        same_as(files, items, part, theirs.data, theirs.targets)
        assert list(classes) == theirs.classes
        assert Counter(theirs.targets) == dict(enumerate(PLANS[name][part]))


def test_svhn_is_as_torchvision_reads_it(made: dict[str, Path]):
    (items, classes), files = opened(ROWS["svhn"], made["svhn"], whole)
    for part in ("train", "test"):
        theirs = _Svhn(made["svhn"], split=part)
        same_as(files, items, part, [image for image, _ in theirs], theirs.labels)
        assert Counter(theirs.labels.tolist()) == dict(enumerate(PLANS["svhn"][part]))
    assert classes == tuple("0123456789")


def test_patch_camelyon_is_as_torchvision_reads_it(made: dict[str, Path], tmp_path: Path):
    (items, _), files = opened(ROWS["pcam"], made["pcam"], whole)
    unpacked(made["pcam"], tmp_path / "pcam")
    for part in ("train", "val", "test"):
        oracle = torchvision.datasets.PCAM(tmp_path, split=part)
        theirs = [oracle[i] for i in range(len(oracle))]
        same_as(files, items, part, [image for image, _ in theirs], [label for _, label in theirs])
        assert Counter(label for _, label in theirs) == dict(enumerate(PLANS["pcam"][part]))


@pytest.mark.parametrize(("name", "column", "factor"), [("dsprites_loc", 4, 2.0), ("dsprites_ori", 3, 2.5)])
def test_dsprites_is_as_numpy_reads_it(name: str, column: int, factor: float, made: dict[str, Path]):
    (items, classes), files = opened(ROWS[name], made[name], whole)
    with np.load(made[name] / DSPRITES) as theirs:
        images, latents = theirs["imgs"], theirs["latents_classes"]
    assert set(np.unique(images)) == {0, 1}
    assert latents.dtype == np.int64 and len(np.unique(latents, axis=0)) == len(latents)
    # As VTAB's code divides: by floats.
    same_as(files, items, "", images * 255, np.floor(latents[:, column].astype(np.float32) / np.float32(factor)))
    assert len(classes) == 16


@pytest.mark.parametrize(("name", "column", "factor"), [("norb_azi", 2, 2), ("norb_ele", 1, 1)])
def test_smallnorb_is_as_its_page_describes_it(name: str, column: int, factor: int, made: dict[str, Path]):
    (items, classes), files = opened(ROWS[name], made[name], whole)
    for part, pattern in NORB.items():
        arrays = {}
        for half, kind in (("dat", "u1"), ("cat", "<i4"), ("info", "<i4")):
            data = gzip.decompress((made[name] / f"{pattern.format(half)}.gz").read_bytes())
            magic, ndim = struct.unpack("<2i", data[:8])
            assert magic == {"dat": 507333717}.get(half, 507333716)  # the numbers of tensorflow_datasets' reader
            shape = struct.unpack(f"<{ndim}i", data[8 : 8 + 4 * ndim])
            arrays[half] = np.frombuffer(data[8 + 4 * max(3, ndim) :], kind).reshape(shape)
        assert arrays["dat"].shape[1:] == (2, 96, 96) and arrays["cat"].ndim == 1
        same_as(files, items, part, arrays["dat"][:, 0], arrays["info"][:, column] // factor)
    assert len(classes) == {"norb_azi": 18, "norb_ele": 9}[name]


def test_coarse_labels_of_cifar100(made: dict[str, Path], tmp_path: Path):
    dataset = row("cifar", 20, "coarse", ("cifar-100-python.tar.gz",))
    (items, classes), _ = opened(dataset, made["cifar100"], whole)
    plain = unpacked(made["cifar100"], tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (plain / "cifar-100-python" / "test").open("rb") as file:
            theirs = pickle.load(file, encoding="bytes")
    assert [item.label for item in items if item.part == "test"] == theirs[b"coarse_labels"]
    assert len(classes) == 20


# --- Written by hand -------------------------------------------------------------------------------------------------

Content = dict[str, Any]


def fresh(kind: str) -> Content:
    """File -> what it holds, of a sound source with two or three images a part; bytes are written as they are."""
    rng = np.random.default_rng(3)
    if kind in ("cifar10", "cifar100"):
        data = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
        if kind == "cifar10":
            content: Content = {f"data_batch_{i}": {"data": data + i, "labels": [i, 9 - i]} for i in range(1, 6)}
            content["test_batch"] = {"data": data, "labels": [0, 9]}
            return content | {"batches.meta": {"label_names": [f"c{i}" for i in range(10)]}}
        batch = {"data": data, "fine_labels": [99, 0], "coarse_labels": [19, 0]}
        names = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
        return {"train": dict(batch), "test": dict(batch), "meta": names}
    if kind == "svhn":
        images = rng.integers(0, 256, (32, 32, 3, 3), dtype=np.uint8)
        return {f"{p}_32x32.mat": {"X": images, "y": np.array([[10], [1], [9]], np.uint8)} for p in ("train", "test")}
    if kind == "pcam":
        content = {}
        for part in ("train", "valid", "test"):
            content[PCAM.format(part, "x")] = {"x": rng.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)}
            content[PCAM.format(part, "y")] = {"y": np.array([1, 0, 1], np.uint8).reshape(3, 1, 1, 1)}
        return content
    if kind == "dsprites_ori":
        latents = np.zeros((40, 6), np.int64)
        latents[:, 3] = np.arange(40)
        return {DSPRITES: {"imgs": rng.integers(0, 2, (40, 64, 64), dtype=np.uint8), "latents_classes": latents}}
    content = {}
    for pattern in NORB.values():
        content[pattern.format("dat")] = rng.integers(0, 256, (3, 2, 96, 96), dtype=np.uint8)
        content[pattern.format("info")] = np.array([[4, 0, 0, 0], [4, 8, 34, 5], [4, 3, 2, 1]], np.int32)
    return content


def matrix(array: np.ndarray) -> bytes:
    magic = 0x1E3D4C55 if array.dtype == np.uint8 else 0x1E3D4C54
    dims = [*array.shape, 1, 1][: max(3, array.ndim)]
    return struct.pack(f"<{2 + len(dims)}i", magic, array.ndim, *dims) + array.tobytes()


def write(kind: str, content: Content, folder: Path, protocol: int = 2) -> Path:
    for name, held in content.items():
        path = folder / name
        if isinstance(held, bytes):
            path.write_bytes(held)
        elif kind.startswith("cifar"):
            path.write_bytes(pickle.dumps(held, protocol))
        elif kind == "svhn":
            scipy.io.savemat(path, held, do_compression=True)
        elif kind == "pcam":
            with h5py.File(path, "w") as file:
                for key, value in held.items():
                    file.create_dataset(key, data=value, chunks=(2, *value.shape[1:]) if value.size > 3 else None)
        elif kind.startswith("dsprites"):
            np.savez_compressed(path, **held)
        else:
            path.write_bytes(matrix(held))
    return folder


KINDS = ("cifar10", "cifar100", "svhn", "pcam", "dsprites_ori", "norb_azi")


def test_labels_written_by_hand(tmp_path: Path):
    expected = {
        "cifar10": [1, 8, 2, 7, 3, 6, 4, 5, 5, 4, 0, 9],
        "cifar100": [99, 0, 99, 0],
        "svhn": [0, 1, 9, 0, 1, 9],
        "pcam": [1, 0, 1] * 3,
        # Two values and three values by turns: 2.5 a class.
        "dsprites_ori": [i for pair in range(8) for i in [2 * pair] * 3 + [2 * pair + 1] * 2],
        "norb_azi": [0, 17, 1, 0, 17, 1],
    }
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        (items, _), _ = opened(ROWS[kind], write(kind, fresh(kind), folder), whole)
        assert [item.label for item in items] == expected[kind], kind


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(protocol: int, tmp_path: Path):
    content = fresh("cifar100")
    (items, _), files = opened(ROWS["cifar100"], write("cifar100", content, tmp_path, protocol), whole)
    image = content["test"]["data"][1].reshape(3, 32, 32)
    np.testing.assert_array_equal(pixels(files["test/000001.png"]), np.moveaxis(image, 0, -1))
    assert [item.label for item in items] == [99, 0, 99, 0]


def test_rows_are_read_in_pieces(tmp_path: Path):
    count = 20000  # 82 MB
    latents = np.zeros((count, 6), np.int64)
    images = np.zeros((count, 64, 64), np.uint8)
    images[-1, 0, 0] = 1
    np.savez_compressed(tmp_path / DSPRITES, imgs=images, latents_classes=latents)
    del images

    def read(source: Source) -> int:
        tracemalloc.start()
        files = dict(source.read(frozenset({"000003.png", f"{count - 1:06d}.png"})))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert pixels(files[f"{count - 1:06d}.png"])[0, 0] == 255 and not pixels(files["000003.png"]).any()
        return peak

    assert opened(ROWS["dsprites_ori"], tmp_path, read) < 24 << 20


# --- Broken ----------------------------------------------------------------------------------------------------------


def drop(name: str) -> Callable[[Content], None]:
    return lambda content: content.pop(name)


def put(name: str, *keys: Any, to: Any) -> Callable[[Content], None]:
    """Puts something else into a file, or instead of it."""

    def change(content: Content) -> None:
        held, path = content, [name, *keys]
        for key in path[:-1]:
            held = held[key]
        held[path[-1]] = to(held[path[-1]]) if callable(to) else to

    return change


class _Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("s2a-evil",)


def cut(array: np.ndarray) -> np.ndarray:
    return array[:-1]


X, Y = PCAM.format("valid", "x"), PCAM.format("test", "y")
DAT, INFO = NORB["train"].format("dat"), NORB["test"].format("info")
BROKEN: list[tuple[str, Callable[[Content], Any], str]] = [
    ("cifar10", drop("data_batch_3"), "no file .*data_batch_3"),
    ("cifar10", drop("test_batch"), "no file test_batch"),
    ("cifar10", drop("batches.meta"), "holds no batches.meta"),
    ("cifar10", put("test_batch", "labels", to=[0]), "are 1 but there are 2 images"),
    ("cifar10", put("batches.meta", "label_names", to=["a"]), "names 1 classes, not 10"),
    ("cifar100", drop("test"), "no file test"),
    ("cifar100", put("train", to=b""), "not a CIFAR pickle"),
    ("cifar100", put("train", to=b"garbage"), "not a CIFAR pickle"),
    ("cifar100", put("train", to=pickle.dumps([1])), "not a CIFAR pickle .*list"),
    ("cifar100", put("train", to=_Evil()), "mkdir, which is refused"),
    ("cifar100", lambda c: c["train"].update(extra=Counter("a")), "collections.Counter, which is refused"),
    ("cifar100", put("train", "data", to=[1, 2]), "images as list"),
    ("cifar100", put("train", "data", to=lambda d: d.astype(np.float32)), "array of 'f4'"),
    ("cifar100", put("train", "data", to=lambda d: d.astype(np.int64)), r"int64 \(2, 3072\)"),
    ("cifar100", put("train", "data", to=lambda d: d[:, :3000]), r"\(2, 3000\), not uint8 \(N, 3072\)"),
    ("cifar100", put("train", "data", to=lambda d: np.array([{}, 1], object)), "array of 'O8'"),
    ("cifar100", put("train", "data", to=lambda d: d[:1]), "are 2 but there are 1 images"),
    ("cifar100", lambda c: c["train"].pop("data"), "no 'data'"),
    ("cifar100", lambda c: c["train"].pop("fine_labels"), "no 'fine_labels'.* CIFAR-100"),
    ("cifar100", put("train", "fine_labels", to=[0, 100]), r"0\.\.99, but that of image 1 is 100"),
    ("cifar100", put("train", "fine_labels", to=[-1, 1]), "image 0 is -1"),
    ("cifar100", put("train", "fine_labels", to=["cat", "dog"]), "not whole numbers"),
    ("cifar100", put("train", "fine_labels", to=[0.5, 1]), "not whole numbers"),
    ("cifar100", put("train", "fine_labels", to=[float("nan"), 1]), "not whole numbers"),
    ("cifar100", put("train", "fine_labels", to=[None, 1]), "not whole numbers"),
    ("cifar100", put("train", "fine_labels", to=[True, False]), "not whole numbers"),
    ("cifar100", put("train", "fine_labels", to=[[1, 2], [3]]), "not one number"),
    ("cifar100", put("train", "fine_labels", to=[[1, 2], [3, 4]]), "not one number"),
    ("cifar100", put("train", "fine_labels", to=3), "not one number"),
    ("cifar100", put("train", "fine_labels", to=[]), "empty"),
    ("cifar100", put("meta", "fine_label_names", to=[1] * 100), "no list 'fine_label_names'"),
    ("cifar100", lambda c: c["meta"].clear(), "no list 'fine_label_names'"),
    ("svhn", drop("test_32x32.mat"), "holds no test_32x32.mat"),
    ("svhn", drop("train_32x32.mat"), "holds no train_32x32.mat"),
    ("svhn", put("test_32x32.mat", to=b""), "not a MATLAB file"),
    ("svhn", put("test_32x32.mat", to=b"MATLAB 7.3" + bytes(4000)), "not a MATLAB file"),
    ("svhn", lambda c: c["test_32x32.mat"].pop("y"), "no labels y"),
    ("svhn", lambda c: c["test_32x32.mat"].pop("X"), "X as nothing"),
    ("svhn", put("test_32x32.mat", "X", to=lambda x: x / 255), "X as double"),
    ("svhn", put("test_32x32.mat", "X", to=lambda x: x[:16]), r"\(16, 32, 3, 3\), not uint8 \(32, 32, 3, N\)"),
    ("svhn", put("test_32x32.mat", "X", to=lambda x: x[..., :2]), "are 3 but there are 2 images"),
    ("svhn", put("test_32x32.mat", "y", to=np.array([[1], [2]])), "are 2 but there are 3 images"),
    ("svhn", put("test_32x32.mat", "y", to=np.array([[1], [0], [2]])), r"1\.\.10, but that of image 1 is 0"),
    ("svhn", put("test_32x32.mat", "y", to=np.array([[1], [11], [2]])), "image 1 is 11"),
    ("svhn", put("test_32x32.mat", "y", to=np.array([[1.5], [1], [2]])), "not whole numbers"),
    ("svhn", put("test_32x32.mat", "y", to="nine"), "not whole numbers|not one number"),
    ("pcam", drop(X), f"holds no {X}"),
    ("pcam", drop(Y), f"holds no {Y}"),
    ("pcam", put(X, to=b""), "not a sound HDF5 file"),
    ("pcam", put(X, to=b"\x89HDF\r\n\x1a\n" + bytes(100)), "not a sound HDF5 file"),
    ("pcam", put(X, to={"z": np.zeros(3)}), "no array 'x'"),
    ("pcam", put(Y, to={"x": np.zeros(3)}), "no array 'y'"),
    ("pcam", put(X, "x", to=lambda x: x / 255), "float64"),
    ("pcam", put(X, "x", to=lambda x: x[:, :32]), r"\(3, 32, 96, 3\), not uint8 \(N, 96, 96, 3\)"),
    ("pcam", put(X, "x", to=cut), "are 3 but there are 2 images"),
    ("pcam", put(Y, "y", to=cut), "are 2 but there are 3 images"),
    ("pcam", put(Y, "y", to=lambda y: y + 1), r"0\.\.1, but that of image 0 is 2"),
    ("pcam", put(Y, "y", to=lambda y: y / 2), "not whole numbers"),
    ("pcam", put(Y, "y", to=np.zeros((3, 2, 1, 1), np.uint8)), "not one number"),
    ("pcam", put(Y, "y", to=np.zeros((0, 1, 1, 1), np.uint8)), "empty"),
    ("dsprites_ori", put(DSPRITES, to=b""), "cannot be read"),
    ("dsprites_ori", put(DSPRITES, to=b"PK\x03\x04"), "cannot be read"),
    ("dsprites_ori", lambda c: c[DSPRITES].pop("imgs"), "no array 'imgs'"),
    ("dsprites_ori", lambda c: c[DSPRITES].pop("latents_classes"), "no array 'latents_classes'"),
    ("dsprites_ori", put(DSPRITES, "imgs", to=lambda x: x.astype(np.float32)), "imgs as float32"),
    ("dsprites_ori", put(DSPRITES, "imgs", to=lambda x: x[:, :32]), r"\(40, 32, 64\), not uint8 \(N, 64, 64\)"),
    ("dsprites_ori", put(DSPRITES, "imgs", to=lambda x: x * 255), "hold 255, but pixels must be 0 or 1"),
    ("dsprites_ori", put(DSPRITES, "imgs", to=lambda x: np.asfortranarray(x)), "cannot be read .*column by row"),
    ("dsprites_ori", put(DSPRITES, "imgs", to=np.array([{}], object)), "cannot be read .*object"),
    ("dsprites_ori", put(DSPRITES, "imgs", to=cut), "are 40 but there are 39 images"),
    ("dsprites_ori", put(DSPRITES, "latents_classes", to=cut), "are 39 but there are 40 images"),
    ("dsprites_ori", put(DSPRITES, "latents_classes", to=lambda x: x[:, :5]), r"\(40, 5\), not whole numbers \(N, 6\)"),
    ("dsprites_ori", put(DSPRITES, "latents_classes", to=lambda x: x * 1.0), "float64"),
    ("dsprites_ori", put(DSPRITES, "latents_classes", to=lambda x: x + 1), "image 39 is 40"),
    ("norb_azi", drop(DAT), f"holds no {DAT}"),
    ("norb_azi", drop(INFO), f"holds no {INFO}"),
    ("norb_azi", put(DAT, to=b""), "does not begin like a binary matrix"),
    ("norb_azi", put(DAT, to=b"abc"), "not a binary matrix"),
    ("norb_azi", put(DAT, to=bytes(100)), "does not begin like a binary matrix"),
    ("norb_azi", put(DAT, to=lambda x: matrix(x)[:-1]), "has 55319 bytes, but 55320 are expected"),
    ("norb_azi", put(DAT, to=lambda x: matrix(x) + b"x"), "has 55321 bytes"),
    ("norb_azi", put(DAT, to=cut), "are 3 but there are 2 images"),
    ("norb_azi", put(DAT, to=lambda x: x[:, :1]), r"\(3, 1, 96, 96\), not uint8 \(N, 2, 96, 96\)"),
    ("norb_azi", put(DAT, to=lambda x: x.astype(np.int32)), "int32"),
    ("norb_azi", put(DAT, to=lambda x: x[:0]), "bytes"),
    ("norb_azi", put(INFO, to=lambda x: x[:, :3].copy()), r"\(3, 3\), not int32 \(N, 4\)"),
    ("norb_azi", put(INFO, to=cut), "are 2 but there are 3 images"),
    ("norb_azi", put(INFO, to=lambda x: x + 1), "even|image 1 is 35"),
    ("norb_azi", put(INFO, to=lambda x: x * np.array([1, 1, 2, 1], np.int32)), "image 1 is 68"),
    ("norb_azi", put(INFO, to=lambda x: x - np.array([0, 0, 1, 0], np.int32)), "image 0 is -1"),
    ("norb_azi", put(INFO, to=lambda x: x // 2), "must be even, but one is"),
]


@pytest.mark.parametrize(("kind", "change", "words"), BROKEN, ids=[f"{k}-{w[:30]}" for k, _, w in BROKEN])
def test_what_is_broken_is_named(kind: str, change: Callable[[Content], Any], words: str, tmp_path: Path):
    content = fresh(kind)
    change(content)
    write(kind, content, tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        opened(ROWS[kind], tmp_path, whole)
    text = str(caught.value)
    assert text.count("\n") == 0 and str(tmp_path) in text
    assert not Path("s2a-evil").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_is_never_a_traceback(kind: str, tmp_path: Path):
    # Whatever is cut off or overwritten: either the damage is named, or all images are there.
    rng = np.random.default_rng(11)
    names = [p.name for p in sorted(write(kind, fresh(kind), tmp_path).iterdir())]
    (items, _), _ = opened(ROWS[kind], tmp_path, whole)
    failures = 0
    for name in names[:3]:
        good = (tmp_path / name).read_bytes()
        damaged = [good[:size] for size in (1, 40, len(good) // 2, len(good) - 1)]
        for _ in range(8):
            data = bytearray(good)
            for at in rng.integers(0, min(len(data), 4000), 4):
                data[at] = rng.integers(256)
            damaged.append(bytes(data))
        for data in damaged:
            (tmp_path / name).write_bytes(data)
            try:
                (found, _), _ = opened(ROWS[kind], tmp_path, whole)
            except InputError:
                failures += 1
            else:
                assert [item.name for item in found] == [item.name for item in items]
        (tmp_path / name).write_bytes(good)
    assert failures > 3


@pytest.mark.parametrize("name", ["cifar10", "pcam", "norb_azi"])
def test_a_download_that_broke_off_is_named(name: str, made: dict[str, Path], tmp_path: Path):
    shutil.copytree(made[name], tmp_path / "cut")
    path = min((tmp_path / "cut").glob({"pcam": "*x.h5.gz", "norb_azi": "*dat.mat.gz"}.get(name, "*")))
    path.write_bytes(path.read_bytes()[:-1000])
    for _ in range(2):
        with pytest.raises(InputError, match="download it again"):
            opened(ROWS[name], tmp_path / "cut", whole)


def test_a_copy_that_broke_off_is_not_taken_for_the_file(made: dict[str, Path], tmp_path: Path):
    (tmp_path / f"{X}.gz").write_bytes((made["pcam"] / f"{X}.gz").read_bytes()[:-1000])
    with Tree(tmp_path) as tree:
        for _ in range(2):
            with pytest.raises(InputError, match="not a readable archive"):
                tree.local(X)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("cifar10", {"classes": 100}, "has 10 classes but tiny has 100"),
        ("cifar100", {"classes": 10}, "has 100 classes but tiny has 10"),
        ("svhn", {"classes": 11}, "has 10 classes but tiny has 11"),
        ("pcam", {"classes": 3}, "has 2 classes but tiny has 3"),
        ("dsprites_loc", {"classes": 32}, "has 16 classes but tiny has 32"),
        ("norb_azi", {"classes": 9}, "has 18 classes but tiny has 9"),
        ("cifar100", {"target": "corse"}, "did you mean coarse"),
        ("cifar10", {"target": "coarse"}, "CIFAR-10, which has no coarse labels"),
        ("dsprites_loc", {"target": "y_position"}, "Unknown target 'y_position'"),
        ("norb_azi", {"target": ""}, "Unknown target"),
    ],
)
def test_a_row_that_does_not_fit_is_named(name: str, change: dict[str, Any], words: str, made: dict[str, Path]):
    dataset = ROWS[name]
    assert dataset.recipe is not None
    if "target" in change:
        dataset = dataclasses.replace(dataset, recipe=dataclasses.replace(dataset.recipe, **change))
    else:
        dataset = dataclasses.replace(dataset, **change)
    with pytest.raises(InputError, match=words):
        opened(dataset, made[name], whole)


@pytest.mark.parametrize(("name", "library"), [("pcam", "h5py"), ("svhn", "scipy.io")])
def test_a_library_that_is_not_installed_is_named(
    name: str, library: str, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=f"pip install {library.partition('.')[0]}"):
        opened(ROWS[name], made[name], whole)


# --- Makers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_sources_are_made_from_the_seed_alone(name: str, made: dict[str, Path], tmp_path: Path):
    dataset = ROWS[name]
    assert dataset.recipe is not None
    for seed, folder in ((5, tmp_path / "same"), (6, tmp_path / "other")):
        folder.mkdir()
        MAKERS[dataset.recipe.reader](dataset, folder, PLANS[name], seed)
    first, same, other = (
        {path.name: path.read_bytes() for path in place.iterdir()}
        for place in (made[name], tmp_path / "same", tmp_path / "other")
    )
    assert first == same
    assert first.keys() == other.keys() and first != other


@pytest.mark.parametrize("name", ROWS)
def test_made_images_differ_and_every_class_occurs(name: str, made: dict[str, Path]):
    (items, classes), files = opened(ROWS[name], made[name], whole)
    assert len(set(files.values())) == len(files)
    counts = Counter((item.part, item.label) for item in items)
    for part, planned in PLANS[name].items():
        assert sum(n for (p, _), n in counts.items() if p == part) == sum(planned)
        for label in range(len(classes)):
            assert counts[part, label] >= min(planned) // 2


def test_made_archives_hold_what_the_originals_hold(made: dict[str, Path]):
    with tarfile.open(made["cifar10"] / "cifar-10-python.tar.gz") as archive:
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
        assert sorted(archive.getnames()) == sorted(f"cifar-10-batches-py/{name}" for name in names)
    with tarfile.open(made["cifar100"] / "cifar-100-python.tar.gz") as archive:
        assert sorted(archive.getnames()) == [f"cifar-100-python/{name}" for name in ("meta", "test", "train")]
    with zipfile.ZipFile(made["dsprites_loc"] / DSPRITES) as archive:
        assert sorted(archive.namelist()) == [
            f"{name}.npy" for name in ("imgs", "latents_classes", "latents_values", "metadata")
        ]
    assert {p.name for p in made["norb_azi"].iterdir()} == {
        f"{pattern.format(half)}.gz" for pattern in NORB.values() for half in ("dat", "cat", "info")
    }


def test_plans_that_are_too_big_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="1 to 24300"):
        MAKERS["smallnorb"](ROWS["norb_azi"], tmp_path, {"train": (1351,) * 18, "test": (1,)}, 0)
    with pytest.raises(ValueError, match="1 to 737280"):
        MAKERS["dsprites"](ROWS["dsprites_loc"], tmp_path, {"": (0,)}, 0)

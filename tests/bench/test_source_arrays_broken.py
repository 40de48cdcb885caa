"""CIFAR, SVHN, PatchCamelyon, dSprites and smallNORB, broken in many ways."""

from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.array_sources import (
    DSPRITES,
    KINDS,
    NORB,
    PCAM,
    ROWS,
    Content,
    fresh,
    h5py,
    matrix,
    opened,
    whole,
    write,
)
from s2a_bench.data.readers.tree import Tree
from s2a_bench.errors import InputError


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
                tree.path_on_disk(X)


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
    assert dataset.preparation is not None
    if "target" in change:
        dataset = dataclasses.replace(dataset, preparation=dataclasses.replace(dataset.preparation, **change))
    else:
        dataset = dataclasses.replace(dataset, **change)
    with pytest.raises(InputError, match=words):
        opened(dataset, made[name], whole)


@pytest.mark.parametrize(("name", "library"), [("pcam", "h5py"), ("svhn", "scipy.io")])
def test_a_library_that_is_not_installed_is_named(
    name: str, library: str, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match="pip install 's2a-bench" if name == "pcam" else "pip install scipy"):
        opened(ROWS[name], made[name], whole)


# Files that take their content from elsewhere


def from_elsewhere(path: Path, how: str, secret: Path) -> None:
    """An HDF5 file whose array ``x`` is the content of another file."""
    shape = (3, 96, 96, 3)
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["x"] = np.ones(shape, np.uint8)
    with h5py.File(path, "w") as file:
        match how:
            case "external link":
                file["x"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "x")
            case "dangling external link":
                file["x"] = h5py.ExternalLink("/nowhere.h5", "x")
            case "soft link":
                file["there"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")
                file["x"] = h5py.SoftLink("/there/x")
            case "raw bytes":
                file.create_dataset("x", shape, np.uint8, external=[(str(secret), 0, 27648 * 3)])
            case "virtual":
                layout = h5py.VirtualLayout(shape, np.uint8)
                layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "x", shape)
                file.create_virtual_dataset("x", layout)


@pytest.mark.parametrize("how", ["external link", "dangling external link", "soft link", "raw bytes", "virtual"])
@pytest.mark.parametrize("half", ["x", "y"])
def test_hdf5_takes_nothing_from_other_files(tmp_path, how, half):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(1, 251)) * 500)
    place = tmp_path / "source"
    place.mkdir()
    write("pcam", fresh("pcam"), place)
    if half == "x":
        from_elsewhere(place / PCAM.format("valid", "x"), how, secret)
    else:
        from_elsewhere(tmp_path / "made.h5", how, secret)
        with h5py.File(tmp_path / "made.h5", "a") as file:
            file.move("x", "y")
        (tmp_path / "made.h5").rename(place / PCAM.format("valid", "y"))
    with pytest.raises(InputError, match=r"link in place of|from other files") as caught:
        opened(ROWS["pcam"], place, whole)
    assert "\n" not in str(caught.value)


def test_an_array_of_a_size_that_nobody_has(tmp_path):
    """A few bytes claim 2 ** 50 images: neither labels nor images may be asked for in memory."""
    write("pcam", fresh("pcam"), tmp_path)
    for half, shape in (("x", (1 << 50, 96, 96, 3)), ("y", (1 << 50, 1, 1, 1)), ("y", (3, 1 << 40, 1, 1))):
        with h5py.File(tmp_path / PCAM.format("test", half), "w") as file:
            file.create_dataset(half, shape, np.uint8, chunks=(1, 1, 1, 1))
        with pytest.raises(InputError, match=r"of a size that no data set has|not a whole number for each"):
            opened(ROWS["pcam"], tmp_path, whole)
        write("pcam", fresh("pcam"), tmp_path)


def test_an_npz_with_a_header_of_nonsense(tmp_path):
    for header in (
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 64, 64), }",
        "(" * 5000,
        "{'descr': 1",
        "\0",
    ):
        text = header.encode().ljust(118 + 5000) + b"\n"
        with zipfile.ZipFile(tmp_path / DSPRITES, "w") as archive:
            archive.writestr("imgs.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        with pytest.raises(InputError, match=r"cannot be read|not uint8"):
            opened(ROWS["dsprites_ori"], tmp_path, whole)


class _Flagged:
    """A dtype whose pickle sets flags that make NumPy take numbers for addresses."""

    def __reduce__(self) -> Any:
        return np.dtype, ("u1", False, True), (3, "|", None, ("a",), {"a": (np.dtype("u1"), 0)}, 8, 1, 27)


def test_a_pickle_cannot_set_the_state_of_numpys_own_objects(tmp_path):
    content = fresh("cifar100")
    content["train"]["extra"] = _Flagged()
    write("cifar100", content, tmp_path)
    with pytest.raises(InputError, match="compound type"):
        opened(ROWS["cifar100"], tmp_path, whole)


def test_a_pickle_leaves_nothing_behind_for_the_next(tmp_path):
    """BUILD sets attributes of what a global name stands for, here of the function that makes types."""
    evil = b"cnumpy\ndtype\n}S'__defaults__'\n(S'u1'\ntsb0}."
    (tmp_path / "train").write_bytes(evil)
    content = fresh("cifar100")
    content["train"] = evil
    write("cifar100", content, tmp_path)
    with pytest.raises(InputError):
        opened(ROWS["cifar100"], tmp_path, whole)
    write("cifar100", fresh("cifar100"), tmp_path)
    assert opened(ROWS["cifar100"], tmp_path, whole)

"""CIFAR, SVHN, PatchCamelyon, dSprites and smallNORB: every packing, against other readers, and made."""

from __future__ import annotations

import gzip
import pickle
import shutil
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.array_sources import (
    DSPRITES,
    KINDS,
    NORB,
    OPEN,
    PLANS,
    ROWS,
    fresh,
    opened,
    pixels,
    row,
    unpacked,
    whole,
    write,
)
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.synthetic.arrays import MAKERS
from s2a_bench.errors import InputError

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
            assert dataset.preparation is not None
            assert not OPEN[dataset.preparation.reader].recognises(tree, dataset)


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


def torchvision_reader(name: str) -> Any:
    """A dataset class of torchvision that takes made-up files."""
    import torchvision  # Here, not above: it imports torch.

    theirs = getattr(torchvision.datasets, name)
    changes: dict[str, Any] = {"_check_integrity": lambda self: True}
    if hasattr(theirs, "meta"):
        changes["meta"] = theirs.meta | {"md5": None}
    return type(name, (theirs,), changes)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_as_torchvision_reads_it(name: str, made: dict[str, Path], tmp_path: Path):
    oracle = torchvision_reader(name.upper())
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
        theirs = torchvision_reader("SVHN")(made["svhn"], split=part)
        same_as(files, items, part, [image for image, _ in theirs], theirs.labels)
        assert Counter(theirs.labels.tolist()) == dict(enumerate(PLANS["svhn"][part]))
    assert classes == tuple("0123456789")


def test_patch_camelyon_is_as_torchvision_reads_it(made: dict[str, Path], tmp_path: Path):
    (items, _), files = opened(ROWS["pcam"], made["pcam"], whole)
    unpacked(made["pcam"], tmp_path / "pcam")
    for part in ("train", "val", "test"):
        oracle = torchvision_reader("PCAM")(tmp_path, split=part)
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


# --- Makers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_sources_are_made_from_the_seed_alone(name: str, made: dict[str, Path], tmp_path: Path):
    dataset = ROWS[name]
    assert dataset.preparation is not None
    for seed, folder in ((5, tmp_path / "same"), (6, tmp_path / "other")):
        folder.mkdir()
        MAKERS[dataset.preparation.reader](dataset, folder, PLANS[name], seed)
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

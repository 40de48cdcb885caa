"""Exports of tensorflow_datasets: every dataset of VTAB-1k, every packing, and exports of many releases."""

from __future__ import annotations

import dataclasses
import io
import shutil
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.tfds_exports import CLASSES, READER, described, info, made, opened, pixels, row, whole
from PIL import Image
from s2a_bench.data.readers import tfrecord
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tfds_features import TFDS_EXPORTS
from s2a_bench.data.readers.tfrecord import iterate_records, parse_example
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.synthetic.tfds_features import LAYOUTS
from s2a_bench.data.table.types import PoolRule, SliceRule
from s2a_bench.errors import InputError

# --- Every dataset ---------------------------------------------------------------------------------------------------


def vtab_label(name: str, features: dict[str, Any]) -> int:
    """The formulas of VTAB's task_adaptation/data, written down again."""
    if name == "clevr_count":
        return len(features["objects/size"]) - 3
    if name == "clevr_dist":
        nearest = np.min(np.reshape(features["objects/pixel_coords"], (-1, 3))[:, 2])
        return int(np.max(np.where(np.array([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0]) - nearest < 0)))
    if name == "kitti":
        places = np.reshape(features["objects/location"], (-1, 3))
        vehicles = [place[2] for place, kind in zip(places, features["objects/type"], strict=True) if kind < 3]
        return int(np.max(np.where(np.array([-100.0, 8.0, 20.0, 999.0]) - min([*vehicles, 1000.0]) < 0)))
    if name == "dsprites_loc":
        return features["label_x_position"][0] // 2
    if name == "dsprites_ori":
        return int(np.floor(features["label_orientation"][0] / 2.5))
    return features[{"smallnorb_azi": "label_azimuth", "smallnorb_ele": "label_elevation"}.get(name, "label")][0]


@pytest.mark.parametrize("name", TFDS_EXPORTS)
def test_labels_images_and_order_are_those_of_the_records(name: str, tmp_path: Path):
    made(name, tmp_path)
    (items, classes, ordered), files = opened(name, tmp_path, whole)
    assert ordered
    assert len(classes) == CLASSES[name]
    found: dict[str, list[tuple[int, bytes]]] = {}
    for item in items:
        found.setdefault(item.part, []).append((item.label, files[item.name]))
        assert item.name.startswith(f"{item.part}/{len(found[item.part]) - 1:06d}.")
    splits = {"train": "train", "val": "validation", "test": "validation" if name.startswith("clevr") else "test"}
    for part, pairs in found.items():
        expected = []
        for path in sorted(tmp_path.rglob(f"*-{splits[part]}.tfrecord-*")):
            for _, data in iterate_records(path, ""):
                features: dict[str, Any] = parse_example(data)
                image = features["image"][0]
                if name.startswith("dsprites"):
                    image = pixels(image) * 255
                expected.append((vtab_label(name, features), image))
        if name.startswith("dsprites"):
            assert all(
                np.array_equal(np.asarray(Image.open(io.BytesIO(a))), b[1])
                for (_, a), b in zip(pairs, expected, strict=True)
            )
            pairs, expected = [(a, b"") for a, _ in pairs], [(a, b"") for a, _ in expected]
        assert pairs == expected
        # As planned, and not sorted.
        assert Counter(label for label, _ in pairs) == dict.fromkeys(range(CLASSES[name]), 2 if part == "train" else 1)
        assert len(pairs) < 8 or [label for label, _ in pairs] != sorted(label for label, _ in pairs)
    assert len(set(files.values())) == len(files)


def test_every_form_has_a_layout_and_is_tested():
    assert TFDS_EXPORTS.keys() == LAYOUTS.keys() == CLASSES.keys()


@pytest.mark.parametrize("name", ["dmlab", "cifar"])
def test_every_packing_gives_the_same_images(name: str, tmp_path: Path):
    place = made(name, tmp_path / "plain")
    version = next(path.parent for path in place.rglob("dataset_info.json"))
    expected = opened(name, place, whole)
    zipped = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", place))
    tarred = Path(shutil.make_archive(str(tmp_path / "tarred"), "gztar", version))
    shutil.copytree(place, tmp_path / "deep" / "tensorflow_datasets")
    for packing in (version, version.parent, tmp_path / "deep", zipped, tarred):
        assert opened(name, packing, whole) == expected, packing


def test_the_same_seed_gives_the_same_files(tmp_path: Path):
    one, same, other = (made("kitti", tmp_path / str(i), seed=seed) for i, seed in enumerate((5, 5, 6)))
    content = [
        {p.relative_to(place): p.read_bytes() for p in place.rglob("*") if p.is_file()} for place in (one, same, other)
    ]
    assert content[0] == content[1]
    assert content[0].keys() == content[2].keys()
    assert content[0] != content[2]


def test_only_wanted_records_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made("dmlab", tmp_path, each=20)
    seen = []
    monkeypatch.setattr(
        tfrecord, "_mask_crc", lambda data, real=tfrecord._mask_crc: seen.append(len(data)) or real(data)
    )

    def some(source: Source) -> list[str]:
        seen.clear()
        return [name for name, _ in source.read(frozenset(("train/000100.jpg", "train/000003.jpg", "test/000002.jpg")))]

    assert opened("dmlab", tmp_path, some) == ["train/000003.jpg", "train/000100.jpg", "test/000002.jpg"]
    assert len([size for size in seen if size != 8]) == 3


@pytest.mark.parametrize("name", ["train/000999.jpg", "train/000000.png", "extra/000000.jpg", "x", "train/0000000.jpg"])
def test_unknown_names(name: str, tmp_path: Path):
    made("dmlab", tmp_path)
    with pytest.raises(InputError, match="holds no image"):
        opened("dmlab", tmp_path, lambda source: list(source.read(frozenset([name]))))


def test_caltechs_pool_is_the_train_split(tmp_path: Path):
    made("caltech101", tmp_path, each=3)
    dataset = row("caltech101", PoolRule(3, (0, 100), (200, 230)))
    lists = opened(dataset, tmp_path, lambda source: (source.lists, source.split_id))
    assert lists[1] == "vtab-1k"
    assert {name: (len(names), names[0], names[-1]) for name, names in lists[0].items()} == {
        "train800": (100, "train/000000.jpg", "train/000099.jpg"),
        "val200": (30, "train/000200.jpg", "train/000229.jpg"),
        "test": (102, "test/000000.jpg", "test/000101.jpg"),
    }
    with pytest.raises(InputError, match="has 306 training images, too few for positions up to 2954"):
        opened(row("caltech101", PoolRule()), tmp_path, whole)
    assert opened(row("caltech101", SliceRule()), tmp_path, lambda source: source.lists) is None


def test_lossy_copies_say_so(tmp_path: Path):
    for name in ("diabetic_retinopathy", "eurosat"):
        source = opened(name, made(name, tmp_path / name), lambda source: source)
        assert source.lossy == (name != "eurosat") == ("quality 72" in source.note)


# --- Descriptions ----------------------------------------------------------------------------------------------------


def test_exports_of_old_releases(tmp_path: Path):
    """No fileFormat, no configName, no features.json: 3.x."""
    place = made("eurosat", tmp_path)
    expected = opened("eurosat", place, whole)
    described(place, fileFormat=None, configName=None, sizeInBytes="7", schema={})
    (info(place).parent / "features.json").unlink()
    for given_place in (place, place / "eurosat", place / "eurosat/rgb", place / "eurosat/rgb/2.0.0"):
        assert opened("eurosat", given_place, whole) == expected
    (place / "eurosat/rgb").rename(place / "eurosat/all")
    with pytest.raises(InputError, match="an export of eurosat/rgb, but there is only the configuration all"):
        opened("eurosat", place, whole)


def test_other_exports_beside_it(tmp_path: Path):
    place = made("eurosat", tmp_path)
    made("dmlab", tmp_path)
    expected = opened("eurosat", place, whole)
    shutil.copytree(place / "eurosat/rgb", place / "eurosat/all")
    path = place / "eurosat/all/2.0.0/dataset_info.json"
    path.write_text(path.read_text().replace('"rgb"', '"all"'))
    assert opened("eurosat", place, whole) == expected
    shutil.copytree(place / "eurosat/rgb/2.0.0", place / "eurosat/rgb/2.1.0")
    with pytest.raises(InputError, match=r"holds 2 exports of eurosat/rgb \(eurosat/rgb/2.0.0/, eurosat/rgb/2.1.0/\)"):
        opened("eurosat", place, whole)
    with Tree(place) as tree:
        assert not READER.recognises(tree, row("kitti"))
        assert not READER.recognises(tree, dataclasses.replace(row("kitti"), name="unheard"))
        with pytest.raises(InputError, match="No export of tensorflow_datasets is known for unheard"):
            READER.open(tree, dataclasses.replace(row("kitti"), name="unheard"))


class FakeReader:
    """The calls of ``array_record`` that are used, over a file of TFRecords."""

    def __init__(self, path: str) -> None:
        if not Path(path).stat().st_size:
            raise RuntimeError("no footer\nof a kind")
        self._data = [data for _, data in iterate_records(Path(path), path)]

    def num_records(self) -> int:
        return len(self._data)

    def read(self, numbers: list[int]) -> list[bytes]:
        assert isinstance(numbers, list)
        assert len(numbers) <= 64
        return [self._data[i] for i in numbers]


def test_array_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = made("dmlab", tmp_path, each=30)
    expected = opened("dmlab", place, whole)
    for path in list(place.rglob("*.tfrecord-*")):
        path.rename(path.with_name(path.name.replace("tfrecord", "array_record")))
    described(place, fileFormat="array_record")
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(InputError, match="pip install array_record, or export it with --file_format=tfrecord"):
        opened("dmlab", place, whole)
    module = types.ModuleType("array_record.python.array_record_module")
    module.ArrayRecordReader = FakeReader  # type: ignore[attr-defined]
    for name in ("array_record", "array_record.python"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert opened("dmlab", place, whole) == expected
    next(place.rglob("*.array_record-*")).write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be read \(no footer\); copy the export again"):
        opened("dmlab", place, whole)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_class_names_of_an_export_end_with_their_line(end: str, tmp_path: Path):
    place = made("cifar", tmp_path)
    file = next(place.rglob("label.labels.txt"))
    names = file.read_text().splitlines()
    file.write_bytes(b"\xef\xbb\xbf" + end.join(names).encode() + end.encode())
    assert opened("cifar", place, lambda source: source.classes) == tuple(names)


def test_classes_in_another_order(tmp_path: Path):
    dataset = row("eurosat")
    assert dataset.preparation is not None
    place = made("eurosat", tmp_path)
    names = tuple(f"Class {i}" for i in range(10))
    known = dataclasses.replace(dataset, preparation=dataclasses.replace(dataset.preparation, class_names=names))
    assert opened(known, place, lambda source: source.classes) == tuple(f"class {i}" for i in range(10))
    other = dataclasses.replace(dataset, preparation=dataclasses.replace(dataset.preparation, class_names=names[::-1]))
    with pytest.raises(InputError, match="has other classes, or in another order, than eurosat"):
        opened(other, place, whole)

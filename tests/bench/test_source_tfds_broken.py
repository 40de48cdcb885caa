"""Exports of tensorflow_datasets that are broken in many ways: each is one sentence."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.tfds_exports import READER, described, info, made, opened, row, whole
from s2a_bench.data.readers.tfrecord import encode_example, iterate_records, parse_example, write_record
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.synthetic.pictures import encode_png
from s2a_bench.errors import InputError


def split(place: Path, name: str = "train") -> Path:
    return next(place.rglob(f"*-{name}.tfrecord-00000-*"))


def rewritten(place: Path, change: Callable[[dict[str, Any]], Any], name: str = "train") -> None:
    """Changes the features of record 1 of a split's first file."""
    path = split(place, name)
    found: list[dict[str, Any]] = [parse_example(data) for _, data in iterate_records(path, "")]
    change(found[1])
    with path.open("wb") as out:
        for features in found:
            write_record(out, encode_example(features))


def labelled(**features: Any) -> Callable[[Path], None]:
    return lambda place: rewritten(place, lambda found: found.update(features))


def without(name: str) -> Callable[[Path], None]:
    return lambda place: rewritten(place, lambda found: found.pop(name))


def cut(place: Path) -> None:
    split(place).write_bytes(split(place).read_bytes()[:-5])


def a_record_less(place: Path) -> None:
    path = split(place)
    last = list(iterate_records(path, ""))[-1][0]
    path.write_bytes(path.read_bytes()[:last])


def no_example(place: Path) -> None:
    with split(place).open("wb") as out:
        write_record(out, b"\x0a\xff")


def one_flipped_bit(place: Path) -> None:
    data = bytearray(split(place).read_bytes())
    data[-20] ^= 1
    split(place).write_bytes(data)


DOTS = {"image": [b"\x89PNG and no more"]}
BROKEN: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "cut file": ("dmlab", cut, "ends within record 11 of dmlab/2.0.1/dmlab-train.tfrecord-00000-of-00001"),
    "record missing": ("dmlab", a_record_less, "holds 11 records, but dataset_info.json states 12"),
    "no example": ("dmlab", no_example, "Record 0 of .* is not a tf.train.Example"),
    "flipped bit": ("dmlab", one_flipped_bit, "checksum|not a tf.train.Example|label|holds"),
    "empty file": ("dmlab", lambda place: split(place).write_bytes(b""), "holds 0 records"),
    "no TFRecord": ("dmlab", lambda place: split(place).write_bytes(b"text " * 9), "record 0 .* fails its checksum"),
    "missing file": (
        "dmlab",
        lambda place: split(place, "test").unlink(),
        "has no .*dmlab-test.tfrecord-00000-of",
    ),
    "label 6": ("dmlab", labelled(label=[6]), "Record 1 of .* has label 6, not 0 to 5"),
    "label -1": ("dmlab", labelled(label=[-1]), "has label -1"),
    "two labels": ("dmlab", labelled(label=[1, 2]), "has no whole number 'label'"),
    "label as text": ("dmlab", labelled(label=[b"1"]), "has no whole number 'label'"),
    "no label": ("dmlab", without("label"), "Record 1 of .* has no whole number 'label'"),
    "no image": ("dmlab", without("image"), "Record 1 of .* has no image"),
    "empty image": ("dmlab", labelled(image=[b""]), "has no image"),
    "two images": ("dmlab", labelled(image=[b"a", b"b"]), "has no image"),
    "orientation 40": ("dsprites_ori", labelled(label_orientation=[40]), "has 40 as 'label_orientation', not 0 to 39"),
    "damaged sprite": ("dsprites_ori", labelled(**DOTS), "Record 1 of .* image cannot be used"),
    "grey sprite": (
        "dsprites_ori",
        labelled(image=[encode_png(np.full((64, 64), 2, np.uint8))]),
        "Record 1 of .* with pixels up to",
    ),
    "azimuth 18": ("smallnorb_azi", labelled(label_azimuth=[18]), "has 18 as 'label_azimuth', not 0 to 17"),
    "two objects": (
        "clevr_count",
        labelled(**{"objects/size": [0, 0], "objects/pixel_coords": [9.0] * 6}),
        "Record 1 of .* has 2 objects, not 3 to 10",
    ),
    "coordinates": ("clevr_dist", labelled(**{"objects/size": [0]}), "has 1 objects and .* numbers as their"),
    "far away": (
        "clevr_dist",
        labelled(**{"objects/size": [0] * 3, "objects/pixel_coords": [101.0] * 9}),
        "nearest object at 101",
    ),
    "nothing there": (
        "clevr_dist",
        labelled(**{"objects/size": [], "objects/pixel_coords": []}),
        "nearest object at inf",
    ),
    "no places": ("kitti", without("objects/location"), "has no list of float numbers 'objects/location'"),
    "types as text": ("kitti", labelled(**{"objects/type": [b"Car"]}), "has no list of int numbers 'objects/type'"),
    "too many places": ("kitti", labelled(**{"objects/type": [0]}), "1 objects and .* 'objects/location'|no list"),
    "behind": (
        "kitti",
        labelled(**{"objects/type": [0], "objects/location": [0.0, 0.0, -100.5]}),
        "Record 1 of .* has a vehicle at -100.5 m",
    ),
    "other name": ("dmlab", lambda place: described(place, name="kitti"), "describes 'kitti', but .* of 'dmlab'"),
    "no name": ("dmlab", lambda place: described(place, name=None), "describes None"),
    "riegeli": (
        "dmlab",
        lambda place: described(place, fileFormat="riegeli"),
        "format 'riegeli', which cannot",
    ),
    "no splits": ("dmlab", lambda place: described(place, splits=None), "does not list its splits"),
    "no lengths": ("dmlab", lambda place: described(place, splits=[{"name": "train"}]), "with their shardLengths"),
    "odd lengths": (
        "dmlab",
        lambda place: described(place, splits=[{"name": "train", "shardLengths": ["many"]}]),
        "with their shardLengths",
    ),
    "endless lengths": (
        "dmlab",
        lambda place: described(place, splits=[{"name": "train", "shardLengths": [float("inf")]}]),
        "with their shardLengths",
    ),
    "too deep": ("dmlab", lambda place: info(place).write_text("[" * 200_000), "is not JSON"),
    "split missing": (
        "dmlab",
        lambda place: described(place, splits=json.loads(info(place).read_text())["splits"][:2]),
        r"no split 'test' \(it has train, validation\)",
    ),
    "no shards": (
        "dmlab",
        lambda place: described(place, splits=[{"name": "train", "shardLengths": []}]),
        "Split 'train' of .* is empty",
    ),
    "not JSON": ("dmlab", lambda place: info(place).write_text("{"), "dataset_info.json in .* is not JSON"),
    "a list": ("dmlab", lambda place: info(place).write_text("[]"), "does not describe a dataset"),
    "not text": ("dmlab", lambda place: info(place).write_bytes(b"\xff\xfe"), "is not text"),
    "class names": (
        "cifar",
        lambda place: next(place.rglob("label.labels.txt")).write_text("a\nb\n"),
        "has 2 classes but cifar has 100",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_exports(case: str, tmp_path: Path):
    name, change, words = BROKEN[case]
    place = made(name, tmp_path)
    change(place)
    with pytest.raises(InputError, match=words):
        opened(name, place, whole)


def test_an_export_without_its_records_is_not_recognised(tmp_path: Path):
    place = made("dmlab", tmp_path)
    for path in place.rglob("*.tfrecord-*"):
        path.unlink()
    with Tree(place) as tree:
        assert not READER.recognises(tree, row("dmlab"))


def test_a_cut_archive(tmp_path: Path):
    place = made("dmlab", tmp_path / "plain")
    path = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", place))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="zipped"):
        opened("dmlab", path, whole)

"""How tensorflow_datasets exports each dataset of the table, and how VTAB-1k derives labels from the features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from s2a_bench.data.images import open_image
from s2a_bench.data.readers.clevr import TARGETS, interval_index, scene_label
from s2a_bench.data.readers.pixels import encode_png
from s2a_bench.data.readers.tfrecord import Value

Features = Mapping[str, Value]

KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
KITTI_FAR = 1000.0
"""The distance of the nearest vehicle where there is none."""
_VEHICLES = 3  # car, van and truck are types 0, 1 and 2

_TWO = {"train": "train", "test": "test"}
_THREE = {"train": "train", "validation": "val", "test": "test"}
_ONE = {"train": "train"}


@dataclasses.dataclass(frozen=True)
class TfdsExport:
    """A dataset as tensorflow_datasets exports it.

    Attributes:
        builder: Its name there.
        parts: Splits that are used, and our parts.
        label: From the features of a record to the label.
        needs: The features that ``label`` reads.
        config: Which of its configurations.
        named: The feature whose ``<feature>.labels.txt`` names the classes, where it is the label itself.
        classes: Names of the classes where no file has them.
        fix: Turns the stored image into the one that VTAB-1k uses.
        lossy: Whether its images were encoded again, with loss.
        note: What a reader of results must know.
    """

    builder: str
    parts: Mapping[str, str]
    label: Callable[[Features], int]
    needs: tuple[str, ...]
    config: str = ""
    named: str = ""
    classes: tuple[str, ...] = ()
    fix: Callable[[bytes], bytes] | None = None
    lossy: bool = False
    note: str = ""


def read_integer(features: Features, name: str) -> int:
    """A feature that is one whole number.

    Raises:
        ValueError: It is not.
    """
    values = features.get(name)
    if not values or len(values) != 1 or not isinstance(values[0], int):
        raise ValueError(f"has no whole number {name!r}")
    return values[0]


def _read_numbers(features: Features, name: str, kind: type) -> np.ndarray:
    values = features.get(name)
    if values is None or not all(isinstance(v, kind) for v in values):
        raise ValueError(f"has no list of {kind.__name__} numbers {name!r}")
    return np.array(values, np.float32 if kind is float else np.int64)


def _labelled_export(builder: str, parts: Mapping[str, str], **more: str | bool) -> TfdsExport:
    return TfdsExport(builder, parts, lambda f: read_integer(f, "label"), ("label",), named="label", **more)  # type: ignore[arg-type]


def _clevr_export(target: str) -> TfdsExport:
    def label(features: Features) -> int:
        objects = len(_read_numbers(features, "objects/size", int))
        places = _read_numbers(features, "objects/pixel_coords", float)
        if len(places) != 3 * objects:
            raise ValueError(f"has {objects} objects and {len(places)} numbers as their 'objects/pixel_coords'")
        return scene_label(target, float(places[2::3].min(initial=np.inf)), objects)

    needs = ("objects/size", "objects/pixel_coords")
    return TfdsExport("clevr", {"train": "train", "validation": "test"}, label, needs, classes=TARGETS[target])


def _label_kitti(features: Features) -> int:
    types = _read_numbers(features, "objects/type", int)
    places = _read_numbers(features, "objects/location", float)
    if len(places) != 3 * len(types):
        raise ValueError(f"has {len(types)} objects and {len(places)} numbers as their 'objects/location'")
    nearest = float(places[2::3][types < _VEHICLES].min(initial=KITTI_FAR))
    label = interval_index(KITTI_DISTANCES, nearest)
    if label < 0:
        raise ValueError(f"has a vehicle at {nearest:g} m")
    return label


def _latent_export(
    builder: str, feature: str, values: int, classes: int, parts: Mapping[str, str], title: str
) -> TfdsExport:
    """Export labelled by a latent factor: value ``v`` of ``values`` has class ``floor(v * classes / values)``."""

    def label(features: Features) -> int:
        value = read_integer(features, feature)
        if not 0 <= value < values:
            raise ValueError(f"has {value} as {feature!r}, not 0 to {values - 1}")
        return value * classes // values

    return TfdsExport(builder, parts, label, (feature,), classes=tuple(f"{title} {i}" for i in range(classes)))


def _dsprites_export(feature: str, values: int, title: str) -> TfdsExport:
    return dataclasses.replace(_latent_export("dsprites", feature, values, 16, _ONE, title), fix=_scale_to_255)


def _scale_to_255(data: bytes) -> bytes:
    """Converts an image whose pixels are stored as 0 and 1 to 0 and 255."""
    with open_image(data) as image:
        pixels = np.asarray(image)
    if pixels.ndim != 2 or pixels.max() > 1:
        raise ValueError(f"has an image of shape {pixels.shape} with pixels up to {pixels.max()}, not of 0 and 1")
    return encode_png((pixels != 0).astype(np.uint8) * np.uint8(255))


_AS_VTAB = "as in other VTAB-1k folders that come from tensorflow_datasets"

TFDS_EXPORTS: Mapping[str, TfdsExport] = {
    "cifar": _labelled_export("cifar100", _TWO),
    "cifar10": _labelled_export("cifar10", _TWO),
    "cifar100": _labelled_export("cifar100", _TWO),
    "caltech101": _labelled_export("caltech101", _TWO),
    "dtd": _labelled_export("dtd", _THREE),
    "oxford_flowers102": _labelled_export("oxford_flowers102", _THREE),
    "oxford_iiit_pet": _labelled_export("oxford_iiit_pet", _TWO),
    "svhn": _labelled_export("svhn_cropped", _TWO),
    "sun397": _labelled_export(
        "sun397",
        _THREE,
        config="tfds",
        lossy=True,
        note=f"Tensorflow_datasets keeps Sun397's images as JPEG of quality 72 and 120,000 pixels at most, {_AS_VTAB}.",
    ),
    "patch_camelyon": _labelled_export("patch_camelyon", _THREE),
    "eurosat": _labelled_export("eurosat", _ONE, config="rgb"),
    "resisc45": _labelled_export("resisc45", _ONE),
    "diabetic_retinopathy": _labelled_export(
        "diabetic_retinopathy_detection",
        _THREE,
        config="btgraham-300",
        lossy=True,
        note=f"Tensorflow_datasets keeps the images scaled to a radius of 300 and as JPEG of quality 72, {_AS_VTAB}.",
    ),
    "clevr_count": _clevr_export("count"),
    "clevr_dist": _clevr_export("distance"),
    "dmlab": _labelled_export("dmlab", _THREE),
    "kitti": TfdsExport(
        "kitti",
        _THREE,
        _label_kitti,
        ("objects/type", "objects/location"),
        classes=("up to 8 m", "8 to 20 m", "20 to 999 m", "no vehicle"),
    ),
    "dsprites_loc": _dsprites_export("label_x_position", 32, "x_position"),
    "dsprites_ori": _dsprites_export("label_orientation", 40, "orientation"),
    "smallnorb_azi": _latent_export("smallnorb", "label_azimuth", 18, 18, _TWO, "azimuth"),
    "smallnorb_ele": _latent_export("smallnorb", "label_elevation", 9, 9, _TWO, "elevation"),
}
"""Dataset of the table -> its export."""

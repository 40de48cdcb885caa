"""Made-up records of the datasets that VTAB-1k takes from tensorflow_datasets, feature by feature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from s2a_bench.data.readers.clevr import MIN_OBJECTS
from s2a_bench.data.readers.tfds_features import KITTI_DISTANCES
from s2a_bench.data.readers.tfrecord import Value
from s2a_bench.data.synthetic.clevr import distance_in_class
from s2a_bench.data.synthetic.pictures import draw_grey_picture, draw_picture, encode_jpeg, encode_png

Features = dict[str, Value]
Spec = dict[str, Any]

TEXT: Spec = {"text": {}}


def image_feature(*shape: int) -> Spec:
    """An image feature; -1 is any size."""
    return {"image": {"dtype": "uint8", "shape": {"dimensions": [str(n) for n in shape]}}}


def label_feature(classes: int) -> Spec:
    """A ``ClassLabel``."""
    return {"classLabel": {"numClasses": str(classes)}}


def float_feature(*shape: int) -> Spec:
    """Floats."""
    dimensions = {"dimensions": [str(n) for n in shape]} if shape else {}
    return {"tensor": {"dtype": "float32", "encoding": "none", "shape": dimensions}}


@dataclasses.dataclass(frozen=True)
class Example:
    """What a record is made of.

    Attributes:
        label: VTAB's, from 0; -1 in a split without labels.
        index: Unique within the dataset.
        classes: How many there are.
        split: Name in tensorflow_datasets.
        seed: Of the dataset.
    """

    label: int
    index: int
    classes: int
    split: str
    seed: int

    def pixels(self, width: int = 16, height: int = 16) -> np.ndarray:
        """``(height, width, 3)`` uint8."""
        return draw_picture(max(self.label, 0), self.index, self.classes, (width, height), self.seed)

    @property
    def rng(self) -> np.random.Generator:
        """A generator that depends only on the dataset's seed and this example's index."""
        return np.random.default_rng((self.seed, self.index, 1))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How tensorflow_datasets stores a dataset.

    Attributes:
        version: Of the export.
        spec: Features in the form of ``features.json``.
        record: The features of one example.
        labels: Feature -> names of its classes, for ``<feature>.labels.txt``; those of "label" come from the dataset.
        unused: Splits that VTAB-1k does not use.
    """

    version: str
    spec: Mapping[str, Spec]
    record: Callable[[Example], Features]
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()


def _record_with_name(name: str, lossless: tuple[int, int] | None = None, **more: Any) -> Callable[[Example], Features]:
    """Records of an image, a label, a name, and what ``more`` makes of the example."""

    def record(one: Example) -> Features:
        data = encode_png(one.pixels(*lossless)) if lossless else encode_jpeg(one.pixels())
        file = f"{one.split}_{one.index:05d}{'' if lossless or name == 'name' else '.jpg'}".encode()
        return {"image": [data], "label": [one.label], name: [file], **{k: make(one) for k, make in more.items()}}

    return record


def _labelled_layout(version: str, name: str, classes: int, names: bool = True) -> Layout:
    spec = {"image": image_feature(-1, -1, 3), "label": label_feature(classes), name: TEXT}
    return Layout(version, spec, _record_with_name(name), {"label": ()} if names else {})


def _pet_record(one: Example) -> Features:
    mask = (one.pixels()[..., :1] // 86 + 1).astype(np.uint8)[..., 0]
    return {**_record_with_name("file_name")(one), "species": [one.label % 2], "segmentation_mask": [encode_png(mask)]}


def _dmlab_record(one: Example) -> Features:
    name = f"video_{one.index // 10}_{one.split}_{one.index % 10}.jpg".encode()
    return {"image": [encode_jpeg(one.pixels(24, 16))], "filename": [name], "label": [one.label]}


def _sequence_feature(**specs: Spec) -> Spec:
    return {"sequence": {"feature": {"featuresDict": {"features": specs}}, "length": "-1"}}


_COLOURS = ("gray", "blue", "brown", "yellow", "red", "green", "purple", "cyan")
_OBJECTS = {"color": _COLOURS, "material": ("rubber", "metal"), "shape": ("cube", "sphere", "cylinder")}
_OBJECTS["size"] = ("small", "large")


def _clevr_record(distance: bool) -> Callable[[Example], Features]:
    def record(one: Example) -> Features:
        rng = one.rng
        count = MIN_OBJECTS + int(rng.integers(8)) if distance else MIN_OBJECTS + one.label
        nearest = distance_in_class(max(one.label, 0) if distance else int(rng.integers(6)), rng.random())
        part = {"validation": "val"}.get(one.split, one.split)
        if part == "test":  # it has no scenes
            count = 0
        places = rng.uniform(nearest, 14, (count, 3))
        if count:
            places[rng.integers(count), 2] = nearest
        return {
            "image": [encode_png(one.pixels(24, 16))],
            "file_name": [f"CLEVR_{part}_{one.index:06d}.png".encode()],
            **{f"objects/{k}": rng.integers(len(names), size=count).tolist() for k, names in _OBJECTS.items()},
            "objects/rotation": rng.uniform(0, 360, count).tolist(),
            "objects/3d_coords": rng.uniform(-3, 3, 3 * count).tolist(),
            "objects/pixel_coords": places.reshape(-1).tolist(),
            "question_answer/question": [b"How many?"] * 2,
            "question_answer/answer": [b"", b""] if part == "test" else [b"3", b"yes"],
        }

    return record


_KITTI_TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
_KITTI_OCCLUDED = ("fully visible", "partly occluded", "largely occluded", "unknown")


def _kitti_record(one: Example) -> Features:
    """The nearest vehicle is as the label says; others that are no vehicles stand nearer still."""
    rng = one.rng
    types = rng.integers(3, 8, size=rng.integers(1, 4)).tolist()
    depths = rng.uniform(1, 90, len(types)).tolist()
    if one.label < 3:
        low, high = max(KITTI_DISTANCES[one.label], 2.0), min(KITTI_DISTANCES[one.label + 1], 70.0)
        nearest = low + (0.05 + 0.9 * rng.random()) * (high - low)
        vehicles = int(rng.integers(1, 4))
        types += rng.integers(0, 3, size=vehicles).tolist()
        depths += [nearest, *rng.uniform(nearest, 80, vehicles - 1).tolist()]
    order = rng.permutation(len(types)).tolist()
    places = np.stack([rng.uniform(-20, 20, len(types)), rng.uniform(1, 2, len(types)), np.array(depths)], 1)[order]
    boxes = np.tile([0.25, 0.25, 0.5, 0.5], (len(types), 1))
    return {
        "image": [encode_png(one.pixels(48, 16))],
        "image/file_name": [f"{one.index:06d}.png".encode()],
        "objects/type": [types[i] for i in order],
        "objects/occluded": rng.integers(4, size=len(types)).tolist(),
        "objects/truncated": [0.0] * len(types),
        "objects/alpha": rng.uniform(-3, 3, len(types)).tolist(),
        "objects/rotation_y": rng.uniform(-3, 3, len(types)).tolist(),
        "objects/bbox": boxes.reshape(-1).tolist(),
        "objects/dimensions": rng.uniform(1, 4, 3 * len(types)).tolist(),
        "objects/location": places.reshape(-1).tolist(),
    }


_SPRITES = {"shape": 3, "scale": 6, "orientation": 40, "x_position": 32, "y_position": 32}


def _dsprites_record(target: str) -> Callable[[Example], Features]:
    def record(one: Example) -> Features:
        rng = one.rng
        latents = {name: int(rng.integers(n)) for name, n in _SPRITES.items()}
        values = [v for v in range(_SPRITES[target]) if v * 16 // _SPRITES[target] == one.label]
        latents[target] = int(rng.choice(values))
        pixels = np.zeros((64, 64), np.uint8)
        y, x = (4 + np.array([latents["y_position"], latents["x_position"]]) * 55 // 32).tolist()
        pixels[y - 2 : y + 3, x - 2 : x + 3] = 1
        turn = 2 * np.pi * latents["orientation"] / 40
        for far in range(5):  # a hand that points where the sprite is turned to
            pixels[round(y + far * np.sin(turn)), round(x + far * np.cos(turn))] = 1
        pixels[63, :20] = one.index >> np.arange(20) & 1  # so that no two are the same
        return {
            "image": [encode_png(pixels)],
            **{f"label_{name}": [value] for name, value in latents.items()},
            **{f"value_{name}": [value / _SPRITES[name]] for name, value in latents.items()},
        }

    return record


_NORB = {"instance": 10, "label_elevation": 9, "label_azimuth": 18, "label_lighting": 6, "label_category": 5}
_TOYS = ("four-legged animals", "human figures", "airplanes", "trucks", "cars")


def _smallnorb_record(target: str) -> Callable[[Example], Features]:
    def record(one: Example) -> Features:
        rng = one.rng
        left = draw_grey_picture(one.label, one.index, one.classes, (96, 96), one.seed)
        latents: Features = {name: [int(rng.integers(n))] for name, n in _NORB.items()}
        return {
            "image": [encode_png(left)],
            "image2": [encode_png(np.roll(left, 3, axis=1))],
            **latents,
            target: [one.label],
        }

    return record


def _clevr_layout(distance: bool) -> Layout:
    objects: dict[str, Spec] = {name: label_feature(len(names)) for name, names in _OBJECTS.items()}
    nested = _sequence_feature(
        **objects, **{"rotation": float_feature(), "3d_coords": float_feature(3), "pixel_coords": float_feature(3)}
    )
    questions = _sequence_feature(question=TEXT, answer=TEXT)
    spec = {"image": image_feature(-1, -1, 3), "file_name": TEXT, "objects": nested, "question_answer": questions}
    names = {f"objects-{name}": names for name, names in _OBJECTS.items()}
    return Layout("3.1.0", spec, _clevr_record(distance), names, ("test",))


def _kitti_layout() -> Layout:
    objects = {
        "type": label_feature(8),
        "occluded": label_feature(4),
        "truncated": float_feature(),
        "alpha": float_feature(),
        "rotation_y": float_feature(),
    }
    box = {"boundingBox": {"dtype": "float32", "shape": {"dimensions": ["4"]}}}
    nested = _sequence_feature(**objects, bbox=box, dimensions=float_feature(3), location=float_feature(3))
    spec = {"image": image_feature(-1, -1, 3), "image/file_name": TEXT, "objects": nested}
    return Layout("3.3.0", spec, _kitti_record, {"objects-type": _KITTI_TYPES, "objects-occluded": _KITTI_OCCLUDED})


def _dsprites_layout(target: str) -> Layout:
    labels = {f"label_{name}": label_feature(n) for name, n in _SPRITES.items()}
    values = {f"value_{name}": float_feature() for name in _SPRITES}
    return Layout("2.0.0", {"image": image_feature(64, 64, 1), **labels, **values}, _dsprites_record(target))


def _smallnorb_layout(target: str) -> Layout:
    labels = {name: label_feature(n) for name, n in _NORB.items()}
    spec = {"image": image_feature(96, 96, 1), "image2": image_feature(96, 96, 1), **labels}
    return Layout("2.0.0", spec, _smallnorb_record(target), {"label_category": _TOYS})


def _cifar_layout(classes: int) -> Layout:
    spec = {"id": TEXT, "image": image_feature(32, 32, 3), "label": label_feature(classes)}
    if classes == 10:
        return Layout("3.0.2", spec, _record_with_name("id", (32, 32)), {"label": ()})
    record = _record_with_name("id", (32, 32), coarse_label=lambda one: [one.label * 20 // one.classes])
    coarse = tuple(f"coarse {i}" for i in range(20))
    return Layout("3.0.2", spec | {"coarse_label": label_feature(20)}, record, {"label": (), "coarse_label": coarse})


def _square_layout(version: str, side: int, classes: int, unused: tuple[str, ...] = ()) -> Layout:
    spec = {"id": TEXT, "image": image_feature(side, side, 3), "label": label_feature(classes)}
    return Layout(version, spec, _record_with_name("id", (side, side)), unused=unused)


_PET_SPEC = {
    "image": image_feature(-1, -1, 3),
    "label": label_feature(37),
    "species": label_feature(2),
    "file_name": TEXT,
    "segmentation_mask": image_feature(-1, -1, 1),
}

LAYOUTS: Mapping[str, Layout] = {
    "cifar": _cifar_layout(100),
    "cifar10": _cifar_layout(10),
    "cifar100": _cifar_layout(100),
    "caltech101": _labelled_layout("3.0.1", "image/file_name", 102),
    "dtd": _labelled_layout("3.0.1", "file_name", 47),
    "oxford_flowers102": _labelled_layout("2.1.1", "file_name", 102),
    "oxford_iiit_pet": Layout("3.2.0", _PET_SPEC, _pet_record, {"label": (), "species": ("Cat", "Dog")}),
    "svhn": _square_layout("3.1.0", 32, 10, ("extra",)),
    "sun397": _labelled_layout("4.0.0", "file_name", 397),
    "patch_camelyon": _square_layout("2.0.0", 96, 2),
    "eurosat": _labelled_layout("2.0.0", "filename", 10),
    "resisc45": _labelled_layout("3.0.0", "filename", 45),
    "diabetic_retinopathy": dataclasses.replace(_labelled_layout("3.0.0", "name", 5, names=False), unused=("sample",)),
    "clevr_count": _clevr_layout(distance=False),
    "clevr_dist": _clevr_layout(distance=True),
    "dmlab": Layout(
        "2.0.1", {"image": image_feature(16, 24, 3), "filename": TEXT, "label": label_feature(6)}, _dmlab_record
    ),
    "kitti": _kitti_layout(),
    "dsprites_loc": _dsprites_layout("x_position"),
    "dsprites_ori": _dsprites_layout("orientation"),
    "smallnorb_azi": _smallnorb_layout("label_azimuth"),
    "smallnorb_ele": _smallnorb_layout("label_elevation"),
}
"""Dataset of the table -> its layout."""

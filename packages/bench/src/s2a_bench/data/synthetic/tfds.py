"""Miniature exports of tensorflow_datasets: the directories that ``download_and_prepare`` leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2a_bench.data.readers.tfds_features import TFDS_EXPORTS, TfdsExport
from s2a_bench.data.readers.tfrecord import encode_example, write_record
from s2a_bench.data.synthetic.tfds_features import LAYOUTS, Example, Layout, Spec
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError

_UNUSED = 3
"""Examples of a split that VTAB-1k does not use."""
_CLASS = "tensorflow_datasets.core.features"
_PYTHON = {
    "text": f"{_CLASS}.text_feature.Text",
    "image": f"{_CLASS}.image_feature.Image",
    "classLabel": f"{_CLASS}.class_label_feature.ClassLabel",
    "tensor": f"{_CLASS}.tensor_feature.Tensor",
    "boundingBox": f"{_CLASS}.bounding_boxes.BBoxFeature",
    "sequence": f"{_CLASS}.sequence_feature.Sequence",
    "featuresDict": f"{_CLASS}.features_dict.FeaturesDict",
}


def make_tfds(dataset: Dataset, place: Path, plan: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """``<builder>[/<config>]/<version>`` with TFRecord files, of any dataset of VTAB-1k.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of our parts; ``""`` stands for ``"train"``.
        seed: Of pictures and their order.

    Raises:
        InputError: No such export is known of the dataset.
    """
    form, layout = TFDS_EXPORTS.get(dataset.name), LAYOUTS.get(dataset.name)
    if form is None or layout is None:
        raise InputError(f"No export of tensorflow_datasets is known for {dataset.name}.")
    folder = place / form.builder / form.config / layout.version
    folder.mkdir(parents=True)
    labels = {
        split: np.repeat(np.arange(dataset.classes), plan.get(part) or plan[""]) for split, part in form.parts.items()
    }
    for split in layout.unused:
        labels[split] = np.full(_UNUSED, 0 if split == "extra" else -1)
    splits = []
    start = 0
    for number, (split, column) in enumerate(labels.items()):
        column = np.random.default_rng((seed, number)).permutation(column)
        examples = [Example(label, start + i, dataset.classes, split, seed) for i, label in enumerate(column.tolist())]
        splits.append(_write_split(folder, form, layout, split, examples))
        start += len(column)
    _write_description(folder, form, layout, splits)
    for feature, names in layout.labels.items():
        known = names or (dataset.preparation.class_names if dataset.preparation else ())
        known = known or tuple(f"class {i}" for i in range(dataset.classes))
        (folder / f"{feature}.labels.txt").write_bytes("".join(f"{name}\n" for name in known).encode())


def _write_split(folder: Path, form: TfdsExport, layout: Layout, split: str, examples: list[Example]) -> dict[str, Any]:
    """The files of a split, and what ``dataset_info.json`` says of it."""
    shards = 2 if len(examples) >= 64 else 1
    floats = _float_features(layout.spec)
    size, lengths = 0, []
    for i in range(shards):
        part = examples[round(len(examples) * i / shards) : round(len(examples) * (i + 1) / shards)]
        with (folder / f"{form.builder}-{split}.tfrecord-{i:05d}-of-{shards:05d}").open("wb") as out:
            for one in part:
                data = encode_example(layout.record(one), floats)
                write_record(out, data)
                size += len(data)
        lengths.append(str(len(part)))
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    return {"filepathTemplate": template, "name": split, "numBytes": str(size), "shardLengths": lengths}


def _float_features(spec: Mapping[str, Spec], above: str = "") -> frozenset[str]:
    """Names of the features that are floats, in an empty list as well."""
    found: set[str] = set()
    for name, feature in spec.items():
        if "sequence" in feature:
            found |= _float_features(feature["sequence"]["feature"]["featuresDict"]["features"], f"{above}{name}/")
        elif "tensor" in feature or "boundingBox" in feature:
            found.add(above + name)
    return frozenset(found)


def _write_description(folder: Path, form: TfdsExport, layout: Layout, splits: list[dict[str, Any]]) -> None:
    info: dict[str, Any] = {
        "citation": "None: a synthetic dataset.",
        "description": f"Synthetic; the form is that of {form.builder}.",
        "fileFormat": "tfrecord",
        "name": form.builder,
        "splits": splits,
        "version": layout.version,
    }
    if form.config:
        info["configName"] = form.config
    (folder / "dataset_info.json").write_bytes(json.dumps(info, indent=2, sort_keys=True).encode())
    features = _with_python_class({"featuresDict": {"features": layout.spec}})
    (folder / "features.json").write_bytes(json.dumps(features, indent=4, sort_keys=True).encode())


def _with_python_class(feature: Spec) -> Spec:
    """A feature with its Python class, and those in it."""
    kind = next(iter(feature))
    value = feature[kind]
    if kind == "featuresDict":
        value = {"features": {name: _with_python_class(inner) for name, inner in value["features"].items()}}
    elif kind == "sequence":
        value = value | {"feature": _with_python_class(value["feature"])}
    return {kind: value, "pythonClassName": _PYTHON[kind]}


MAKERS: dict[str, Callable[[Dataset, Path, Mapping[str, tuple[int, ...]], int], None]] = {"tfds": make_tfds}

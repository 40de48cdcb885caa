"""Miniature datasets of the Hugging Face hub: Parquet files with the images in a column."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2a_bench.data.synthetic.pictures import draw_picture, encode_jpeg, encode_png
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError

_SPLITS = {"": "train", "train": "train", "val": "validation", "test": "test"}
_GROUP = 100  # rows, as the hub's viewer likes them


def make_hub(dataset: Dataset, place: Path, plan: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """``data/{train,validation,test}-00000-of-0000N-<hash>.parquet``, two files of a part of more than 100 images.

    Columns are called as in the copies of the CIFARs (img, fine_label, coarse_label), and image and label elsewhere.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of each part; ``""`` is written as "train".
        seed: Of pictures and their order.

    Raises:
        InputError: pyarrow is missing.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError("Parquet files need a library that is missing: pip install 's2a-bench[data]'.") from error
    (place / "data").mkdir()
    start = 0
    for number, (part, counts) in enumerate(plan.items()):
        labels = np.random.default_rng((seed, number)).permutation(np.repeat(np.arange(len(counts)), counts))
        files = 2 if len(labels) > _GROUP else 1
        for i, rows in enumerate(np.array_split(np.arange(len(labels)), files)):
            stem = f"{_SPLITS[part]}-{i:05d}-of-{files:05d}-{seed % 16**8:08x}{number:02x}{i:06x}"
            # One row group after the other, so that a large part is never in memory.
            table = _make_table(dataset, labels[rows[:0]], start, seed)
            with pq.ParquetWriter(place / "data" / f"{stem}.parquet", table.schema) as out:
                for first in range(0, len(rows), _GROUP):
                    some = rows[first : first + _GROUP]
                    out.write_table(_make_table(dataset, labels[some], start + int(some[0]), seed))
        start += len(labels)


def _make_table(dataset: Dataset, labels: np.ndarray, start: int, seed: int) -> Any:
    import pyarrow as pa

    whole = dataset.name in ("cifar", "cifar10", "cifar100")
    image, label = ("img", "label" if dataset.classes == 10 else "fine_label") if whole else ("image", "label")
    images = []
    for index, one in enumerate(labels.tolist(), start):
        pixels = draw_picture(one, index, dataset.classes, (32, 32) if whole else (16, 16), seed)
        if dataset.encoding == "lossless":  # the hub's conversion of arrays gives them no path
            images.append({"bytes": encode_png(pixels), "path": None})
        else:
            images.append({"bytes": encode_jpeg(pixels), "path": f"image_{index:06d}.jpg"})
    names = dataset.preparation.class_names if dataset.preparation else ()
    names = names or tuple(f"class {i}" for i in range(dataset.classes))
    columns: dict[str, Any] = {
        image: pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        label: pa.array(labels, pa.int64()),
    }
    features: dict[str, Any] = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    if label == "fine_label":
        columns["coarse_label"] = pa.array(labels * 20 // dataset.classes, pa.int64())
        features["coarse_label"] = {"names": [f"coarse {i}" for i in range(20)], "_type": "ClassLabel"}
    table = pa.table(columns)
    return table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})


MAKERS: dict[str, Callable[[Dataset, Path, Mapping[str, tuple[int, ...]], int], None]] = {"hub": make_hub}

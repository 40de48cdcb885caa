"""Own images in the form that Hugging Face calls imagefolder: files, and a ``metadata`` table beside them."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from pathlib import PurePosixPath

from s2a_bench.data.images import UNREAD_SUFFIXES, is_image
from s2a_bench.data.own.columns import check_one_row, choose_columns
from s2a_bench.data.own.folders import outer_folder
from s2a_bench.data.own.options import OwnOptions
from s2a_bench.data.own.read import (
    PART_NAMES,
    OwnImage,
    OwnSource,
    count_images,
    make_tree_reader,
    name_some,
    order_classes,
)
from s2a_bench.data.own.tables import Rows, as_cell, list_rows, read_csv, read_parquet
from s2a_bench.data.readers.tree import Tree
from s2a_bench.errors import InputError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def find_metadata(tree: Tree) -> list[str]:
    """Paths of the metadata tables in a tree."""
    return [name for name in tree.names if PurePosixPath(name).name.lower() in METADATA]


def read_metadata(tree: Tree, options: OwnOptions) -> OwnSource | None:
    """Reads images with their labels from metadata tables; ``None``: there are none, or they have no labels.

    ``file_name`` counts from the table's folder. Parts are those of a column, or of folders called train, val and test
    that the images lie in.

    Raises:
        InputError: A table that cannot be read, lacks columns or values, or lists images that are not there.
    """
    listed: list[OwnImage] = []
    notes: list[str] = []
    tables = find_metadata(tree)
    for table in tables:
        rows = _read_rows(tree, table)
        chosen = choose_columns(rows.names, options, rows.what, label=options.label_column is not None)
        if not chosen.label:
            if options.group_column is None and options.split_column is None:
                continue
            chosen = choose_columns(rows.names, options, rows.what)  # says that there are no labels
        notes.append(chosen.describe(rows.what))
        folder = posixpath.dirname(table)
        for image in list_rows(rows, chosen):
            name = posixpath.normpath(posixpath.join(folder, image.name.replace("\\", "/")))
            listed.append(dataclasses.replace(image, name=name))
    if not listed:
        return None
    there = set(tree.names)
    missing = [image.name for image in listed if image.name not in there]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(listed)} images that {name_some(tables)} of {tree.place} list are not there "
            f"({name_some(missing)}); correct the paths, which count from the table's folder."
        )
    check_one_row(listed, f"{name_some(tables)} of {tree.place}")
    images = list({image.name: image for image in listed}.values())
    if all(image.part is None for image in images):
        images = _take_parts(images)
    known = {image.name for image in images}
    if left := [name for name in tree.names if is_image(name) and name not in known]:
        notes.append(f"{count_images(len(left))} in no row of {name_some(tables)} are left out ({name_some(left)}).")
    unread = {image.name: image.label for image in images if image.name.lower().endswith(UNREAD_SUFFIXES)}
    return OwnSource(
        place=tree.place,
        form="table",
        images=tuple(image for image in images if image.name not in unread),
        classes=order_classes(image.label for image in images),
        read=make_tree_reader(tree),
        base=tree.folder,
        unread=unread,
        notes=tuple(notes),
    )


def _take_parts(images: list[OwnImage]) -> list[OwnImage]:
    """Parts by the folders of the first level, where all of these are parts and train is among them."""
    prefix = outer_folder([image.name for image in images])
    inner = [image.name.removeprefix(prefix).split("/") for image in images]
    parts = [PART_NAMES.get(names[0].casefold()) if len(names) > 1 else None for names in inner]
    if None in parts or "train" not in parts:
        return images
    return [dataclasses.replace(image, part=part) for image, part in zip(images, parts, strict=True)]


def _read_rows(tree: Tree, name: str) -> Rows:
    what = f"{name} of {tree.place}"
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".csv":
        return read_csv(tree.read(name), what)
    if suffix == ".parquet":
        return dataclasses.replace(read_parquet(tree.path_on_disk(name)), what=what)
    lines = [line for line in tree.read_text(name).split("\n") if line.strip()]
    values = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"Line {number} of {what} is no JSON ({error}); write one object in each line.") from error
        if not isinstance(found, dict):
            raise InputError(f"Line {number} of {what} is no JSON object; write one object in each line.")
        values.append(found)
    names = list(dict.fromkeys(key for found in values for key in found))
    return Rows(what, {key: [as_cell(found.get(key)) for found in values] for key in names})

"""Finds out in which form own images lie there, and opens them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from s2a_bench.data.images import is_image
from s2a_bench.data.own.folders import TABLE_SUFFIXES, read_folders
from s2a_bench.data.own.hub import holds_images, holds_saved, read_hub_files, read_image_rows, read_saved
from s2a_bench.data.own.metadata import read_metadata
from s2a_bench.data.own.options import OwnOptions
from s2a_bench.data.own.read import OwnSource
from s2a_bench.data.own.tables import PARQUET_SUFFIXES, read_table
from s2a_bench.data.readers.tree import Tree
from s2a_bench.errors import InputError, Mistakes


@contextlib.contextmanager
def open_own(place: Path, options: OwnOptions) -> Iterator[OwnSource]:
    """Opens own images of any form; reads none.

    Args:
        place: A folder, an archive or a table.
        options: Which columns to use.

    Raises:
        InputError: There is nothing that can be used; several mistakes together.
    """
    if place.is_file() and place.suffix.lower() in TABLE_SUFFIXES:
        parquet = place.suffix.lower() in PARQUET_SUFFIXES
        yield read_image_rows(place, options) if parquet and holds_images(place) else read_table(place, options)
        return
    if holds_saved(place):
        yield read_saved(place, options)
        return
    with Tree(place) as tree:
        found = read_metadata(tree, options)
        if found is None and not any(is_image(name) for name in tree.names):
            found = read_hub_files(tree, options)
        if found is None:
            mistakes = Mistakes()
            with mistakes.collecting():
                _refuse_columns(place, options)
            with mistakes.collecting():
                found = read_folders(tree)
            mistakes.raise_all()
        assert found is not None
        yield found


def _refuse_columns(place: Path, options: OwnOptions) -> None:
    for flag, value in (
        ("--group-column", options.group_column),
        ("--path-column", options.path_column),
        ("--label-column", options.label_column),
        ("--split-column", options.split_column),
    ):
        if value is not None:
            raise InputError(
                f"{flag} {value!r} goes with a table, and {place} is a folder or archive of images; give a CSV or "
                "Parquet "
                "file with the columns path, label and that one."
            )

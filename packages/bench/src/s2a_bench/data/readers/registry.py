"""All readers by name. A new format is one reader in a module that ``_MODULES`` lists."""

from __future__ import annotations

import importlib

from s2a_bench.data.readers.source import Reader
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset

_MODULES = ("arrays", "clevr", "folders", "hub", "listed", "noah", "retinopathy", "tfds")
_GENERAL_FORMS = ("noah", "tfds", "hub")
"""Formats of many datasets; tried where a dataset's own format is not recognised."""

_ALTERNATIVE_FORMS = {"cifar": ("image_folder",), "ucf101": ()}
"""Reader -> other formats in which its datasets are published."""


def load_readers() -> dict[str, Reader]:
    """Every reader by name."""
    found = [r for m in _MODULES for r in importlib.import_module(f"s2a_bench.data.readers.{m}").READERS]
    return {reader.name: reader for reader in found}


def find_reader(tree: Tree, dataset: Dataset) -> Reader | None:
    """Finds the reader that recognises the files, the dataset's own format first; ``None``: none does."""
    assert dataset.preparation is not None
    known = load_readers()
    own = dataset.preparation.reader
    for name in dict.fromkeys((own, *_ALTERNATIVE_FORMS.get(own, ()), *_GENERAL_FORMS)):
        if known[name].recognises(tree, dataset):
            return known[name]
    return None

"""Every form in which datasets are read, by name. A new form is one reader in one module, named here."""

from __future__ import annotations

import importlib

from s2a_bench.data.readers.source import Reader
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset

_MODULES = ("arrays", "clevr", "folders", "hub", "listed", "noah", "retinopathy", "tfds")
_GENERAL_FORMS = ("noah", "tfds", "hub")
"""Forms in which many datasets are found; tried where a dataset's own form is not recognised."""

_ALTERNATIVE_FORMS = {"cifar": ("image_folder",), "ucf101": ()}
"""Reader -> other forms of the same datasets."""


def load_readers() -> dict[str, Reader]:
    """Every reader by name."""
    found = [r for m in _MODULES for r in importlib.import_module(f"s2a_bench.data.readers.{m}").READERS]
    return {reader.name: reader for reader in found}


def find_reader(tree: Tree, dataset: Dataset) -> Reader | None:
    """The reader for what is there, the dataset's own form first; ``None``: no form that is known."""
    assert dataset.preparation is not None
    known = load_readers()
    own = dataset.preparation.reader
    for name in dict.fromkeys((own, *_ALTERNATIVE_FORMS.get(own, ()), *_GENERAL_FORMS)):
        if known[name].recognises(tree, dataset):
            return known[name]
    return None

"""The identity of a cell: the facts that decide its result, the id made of them, and the checks on the way.

A cell is identified once, by the process that plans a sweep. The facts travel with the cell to the process that runs it
(``IdentifiedCell``), which opens data and weights anyway and so notices when they are no longer those of the id.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import s2a
import torch

from s2a_bench.cells import backbones
from s2a_bench.cells.backbones import DataFormat
from s2a_bench.cells.record import cell_id
from s2a_bench.cells.train import attach, for_recipe
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, TrainConfig, identifying
from s2a_bench.data import augment
from s2a_bench.data import loading as data
from s2a_bench.data.table import lookup
from s2a_bench.errors import InputError


@dataclasses.dataclass(frozen=True)
class IdentifiedCell:
    """A cell whose input was checked.

    Attributes:
        config: The cell.
        facts: What decides its result, as JSON values: suite, dataset with its data and split ids, limits, augmentation
            that is not the suite's own, backbone with its checkpoint id and data format, the method's whole config, the
            recipe and the seed.
        cell_id: Made of the facts and the protocol version, see ``record.cell_id``.
    """

    config: CellConfig
    facts: Mapping[str, Any]
    cell_id: str


@dataclasses.dataclass(frozen=True)
class OpenCell:
    """An identified cell with what was opened to identify it.

    Attributes:
        cell: The cell.
        dataset: Its dataset, whose images are not decoded yet.
        adapted: The backbone with its method and head; ``None`` where it was not needed for the identity.
    """

    cell: IdentifiedCell
    dataset: data.OpenDataset
    adapted: s2a.Adapted | None


def identify(cell: CellConfig) -> str:
    """The cell's id; everything that can be wrong with the cell is found here, before anything runs.

    The id covers the facts of ``IdentifiedCell`` and the protocol version; not paths, device and threads.

    Raises:
        ValueError: Bad input: one sentence.
    """
    return identify_cell(cell).cell_id


def identify_cell(cell: CellConfig) -> IdentifiedCell:
    """As ``identify``, with the facts, which ``known_facts`` then has for the rest of the process."""
    method = s2a.method_config(cell.method.name, **cell.method.options)
    ids = _data_ids(cell.data)
    checkpoint = backbones.checkpoint_id(cell.backbone)
    options = json.dumps(dict(cell.method.options), sort_keys=True)
    classes = _classes(cell.data)
    expected = _check_method(cell.backbone, cell.method.name, options, classes, cell.train.number_format)
    return _identified(cell, method, ids, checkpoint, expected)


def open_cell(cell: CellConfig | IdentifiedCell) -> OpenCell:
    """Opens a cell to run it.

    Args:
        cell: A config, of which everything is checked as ``identify`` does, by building the model that is then
            trained; or a cell that was identified before: its data are opened and its weights hashed, and both must
            still be those of its id. Its model is left to the caller.

    Raises:
        ValueError: Bad input; data, weights or a version of s2a-bench that are not those of the id.
    """
    config = cell if isinstance(cell, CellConfig) else cell.config
    method = s2a.method_config(config.method.name, **config.method.options)
    dataset = data.open_dataset(config.data)
    checkpoint = backbones.checkpoint_id(config.backbone)
    if isinstance(cell, CellConfig):
        adapted, expected = adapt(config)
        found = _identified(config, method, (dataset.data_id, dataset.split_id), checkpoint, expected)
        return OpenCell(found, dataset, adapted)
    # The format is the one fact that takes a model to find out; ``run.prepare`` compares it with that of the model.
    expected = data_format(cell)
    found = _identified(config, method, (dataset.data_id, dataset.split_id), checkpoint, expected)
    if found.cell_id != cell.cell_id:
        raise InputError(
            f"Data, weights or the version of s2a-bench are not those that cell {cell.cell_id} was identified with "
            f"(here it is cell {found.cell_id}); make them the same, or run the sweep again."
        )
    return OpenCell(found, dataset, None)


def adapt(config: CellConfig) -> tuple[s2a.Adapted, DataFormat]:
    """The model that a cell trains, on the CPU, and the images that it expects.

    Raises:
        ValueError: A backbone that cannot be had, or a method that does not fit it.
    """
    model, expected = backbones.create(config.backbone, config.seed, config.train.drop_path)
    torch.manual_seed(config.seed)
    method = s2a.method_config(config.method.name, **config.method.options)
    return attach(model, method, _classes(config.data), expected.size, config.train), expected


def _classes(config: DataConfig) -> int:
    return lookup.get_dataset(config.suite, config.dataset, config.root).classes


def data_format(cell: IdentifiedCell) -> DataFormat:
    """What an identified cell's backbone expects of images."""
    values = cell.facts["format"]
    return DataFormat(values["size"], tuple(values["mean"]), tuple(values["std"]), values["interpolation"])


def _identified(
    cell: CellConfig, method: Any, ids: tuple[str, str], checkpoint: str, expected: DataFormat
) -> IdentifiedCell:
    facts = {
        "suite": cell.data.suite,
        "dataset": cell.data.dataset,
        "data_id": ids[0],
        "split_id": ids[1],
        "evaluate": cell.data.evaluate,
        "limits": [cell.data.limit_train, cell.data.limit_test],
        **augment.changes(cell.data),
        "backbone": cell.backbone.name,
        "checkpoint_id": checkpoint,
        "format": dataclasses.asdict(expected),
        "method": cell.method.name,
        "method_config": identifying(for_recipe(method, cell.train)),
        "train": identifying(cell.train),
        "seed": cell.seed,
    }
    plain = json.loads(json.dumps(facts))  # tuples become lists, as in a record that is read again
    found = IdentifiedCell(cell, plain, cell_id(plain))
    _known_facts[found.cell_id] = plain
    return found


@functools.lru_cache(maxsize=256)
def _check_method(
    backbone: BackboneConfig, method: str, options: str, classes: int, number_format: TrainConfig
) -> DataFormat:
    """Attaches once for all cells that share the arguments, so that what does not fit is found before anything runs."""
    model, expected = backbones.create(backbone)
    attach(model, s2a.method_config(method, **json.loads(options)), classes, expected.size, number_format)
    return expected


# --- What is known already -------------------------------------------------------------------------------------------

_known_facts: dict[str, Mapping[str, Any]] = {}
_shared_ids: dict[DataConfig, tuple[str, str]] | None = None


def known_facts(cell: str) -> Mapping[str, Any] | None:
    """The facts behind an id that this process has identified. An id is a hash of its facts: they never get old."""
    return _known_facts.get(cell)


def with_facts(config: CellConfig, cell: str, facts: Mapping[str, Any] | None = None) -> CellConfig | IdentifiedCell:
    """A cell to run, with the facts of its id: those given, or those known here; without any the config alone."""
    facts = facts or known_facts(cell)
    return config if facts is None else IdentifiedCell(config, facts, cell)


@contextlib.contextmanager
def data_opened_once() -> Iterator[None]:
    """Within the block every dataset is opened and checked once for all cells that are identified on it."""
    global _shared_ids
    before, _shared_ids = _shared_ids, {}
    try:
        yield
    finally:
        _shared_ids = before


def _data_ids(config: DataConfig) -> tuple[str, str]:
    if _shared_ids is None:
        return data.check_data(config)
    if config not in _shared_ids:
        _shared_ids[config] = data.check_data(config)
    return _shared_ids[config]

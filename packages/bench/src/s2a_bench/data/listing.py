"""The datasets of the table, the own ones, and their state on disk, as ``s2a-bench data list`` prints them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2a_bench.data.folder import Manifest, find_dataset_folder, read_manifest
from s2a_bench.data.mini import tasks as mini_tasks
from s2a_bench.data.other_sets import explain_other_set
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.types import Counts
from s2a_bench.errors import InputError


@dataclasses.dataclass(frozen=True)
class DatasetStatus:
    """A dataset, and what of it lies on disk.

    Attributes:
        name: Dataset.
        suite: Its suite.
        group: Its group.
        classes: Number of classes.
        counts: Images per list by the table; of an own dataset by its manifest.
        present: Whether it can be loaded from the given data root.
        prepared: Whether its folder has a manifest.
        data_id: Of a prepared folder.
        split_id: Of a prepared folder or embedded task.
        where: Its folder, or how to get it.
        synthetic: Whether its images were made up.
        lossy: Whether its images were re-encoded with loss.
        size: Of the listed images together, e.g. ``"9144 images, 131.3 MB"``; of a prepared folder.
        note: What its manifest says a reader of results must know, or why the folder of its name is not it.
        own: As in the manifest, of an own dataset.
    """

    name: str
    suite: str
    group: str
    classes: int
    counts: Counts
    present: bool
    prepared: bool
    data_id: str | None
    split_id: str | None
    where: str
    synthetic: bool = False
    lossy: bool = False
    size: str = ""
    note: str = ""
    own: Mapping[str, Any] | None = None


def list_datasets(root: Path | None) -> list[DatasetStatus]:
    """State of every dataset of the table under a data root, and of the own ones there.

    A folder counts as present with its lists and a readable manifest, if any, that is not another dataset's;
    ``verify_dataset`` is the full check.
    """
    rows = []
    for dataset in datasets.DATASETS.values():
        present, manifest, where, reason = dataset.embedded, None, dataset.where, ""
        if not dataset.embedded and root is not None:
            try:
                folder = find_dataset_folder(dataset, root)
                manifest = read_manifest(folder)
                present = all((folder / f"{name}.txt").is_file() for name in dataset.lists)
                if other := explain_other_set(dataset, folder, manifest, {}):
                    present, manifest, reason = False, None, f"{folder} is not {dataset.name}: {other}."
                else:
                    where = str(folder)
            except InputError:
                present = False
        rows.append(
            DatasetStatus(
                name=dataset.name,
                suite=dataset.suite,
                group=dataset.group,
                classes=dataset.classes,
                counts=dataset.counts,
                present=present,
                prepared=manifest is not None,
                data_id=manifest.data_id if manifest else None,
                split_id=mini_tasks.SPLIT_ID if dataset.embedded else manifest.split_id if manifest else None,
                where=where,
                synthetic=dataset.synthetic or (manifest is not None and manifest.synthetic),
                lossy=manifest is not None and manifest.lossy,
                size=_disk_size(manifest) if manifest is not None else "",
                note=manifest.note if manifest is not None else reason,
            )
        )
    return [*rows, *(_describe_own(name, Path(root)) for name in datasets.own_datasets(root) if root is not None)]


def _describe_own(name: str, root: Path) -> DatasetStatus:
    try:
        dataset, manifest = datasets.get_dataset(datasets.OWN, name, root), read_manifest(root / name)
    except InputError as error:
        unknown = Counts(None, None, None, None)
        where = str(root / name)
        return DatasetStatus(
            name, datasets.OWN, datasets.OWN, 0, unknown, False, False, None, None, where, note=str(error)
        )
    assert manifest is not None
    return DatasetStatus(
        name=name,
        suite=dataset.suite,
        group=dataset.group,
        classes=dataset.classes,
        counts=dataset.counts,
        present=all((root / name / f"{each}.txt").is_file() for each in dataset.lists),
        prepared=True,
        data_id=manifest.data_id,
        split_id=manifest.split_id,
        where=str(root / name),
        lossy=manifest.lossy,
        size=_disk_size(manifest),
        note=manifest.note,
        own=manifest.own,
    )


def _disk_size(manifest: Manifest) -> str:
    return f"{len(manifest.files)} images, {sum(info.bytes for info in manifest.files.values()) / 1e6:.1f} MB"

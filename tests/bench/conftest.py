"""Fixtures that several files share: a web server, made-up sources, small prepared folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
from bench.small_caltech import ARCHIVE, FILES, NAMES, PER_CLASS, TINY_COUNTS, write_tar
from bench.small_folders import COUNTS, picture, write_vtab
from bench.web_site import Site, serving
from huggingface_hub.errors import LocalEntryNotFoundError
from s2a_bench.data import http as web
from s2a_bench.data.prepare import prepare_dataset
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.table.types import PoolRule


@pytest.fixture
def site() -> Iterator[Site]:
    """A running web server that answers as it is told."""
    with serving() as each:
        yield each


@pytest.fixture
def quick_web(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads lose no time with waiting."""
    monkeypatch.setattr(web, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(web, "_TIMEOUT", 5.0)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sources of every kind of array, by name of their plan."""
    from bench.array_sources import PLANS, ROWS  # needs what only some machines have
    from s2a_bench.data.synthetic.arrays import MAKERS

    places = {}
    for name, dataset in ROWS.items():
        places[name] = tmp_path_factory.mktemp(name)
        assert dataset.preparation is not None
        MAKERS[dataset.preparation.reader](dataset, places[name], PLANS[name], 5)
    return places


@pytest.fixture
def tiny(monkeypatch):
    """Caltech101's row cut down to three classes, so that a test takes milliseconds."""
    row = DATASETS["caltech101"]
    assert row.preparation is not None
    preparation = dataclasses.replace(
        row.preparation, class_names=tuple(sorted(n.lower() for n in NAMES)), rule=PoolRule(PER_CLASS, (0, 8), (14, 17))
    )
    small = dataclasses.replace(row, classes=3, counts=TINY_COUNTS, preparation=preparation)
    monkeypatch.setitem(DATASETS, "caltech101", small)
    return small


@pytest.fixture
def source(tmp_path, tiny) -> Path:
    """A download of the small Caltech101."""
    folder = tmp_path / "download"
    folder.mkdir()
    return write_tar(folder / ARCHIVE, FILES)


@pytest.fixture
def prepared(tmp_path, source) -> Path:
    """The same, prepared."""
    return prepare_dataset("caltech101", source, tmp_path / "root")


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """A small folder of another tool under the name of a VTAB task."""
    monkeypatch.setitem(DATASETS, "svhn", dataclasses.replace(DATASETS["svhn"], counts=COUNTS))
    written = write_vtab(tmp_path / "root" / "svhn")
    return tmp_path / "root" / "svhn", written


@pytest.fixture
def caltech(tmp_path, monkeypatch):
    """A small folder made by ``prepare``, with images of several sizes."""
    row = DATASETS["caltech101"]
    assert row.preparation is not None
    preparation = dataclasses.replace(
        row.preparation, class_names=("ant", "bee", "cat"), rule=PoolRule(4, (0, 6), (9, 12))
    )
    monkeypatch.setitem(
        DATASETS, "caltech101", dataclasses.replace(row, classes=3, counts=COUNTS, preparation=preparation)
    )
    source = tmp_path / preparation.folder
    for label, name in enumerate(preparation.class_names):
        (source / name).mkdir(parents=True)
        for i in range(7 if label == 0 else 6):
            picture(100 * label + i, 8 + i, 12 - i).save(source / name / f"image_{i:04d}.jpg")
    return prepare_dataset("caltech101", source, tmp_path / "root")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Nothing is written into the checkout; nothing is looked for on a network."""

    def no_network(*args, **kwargs):
        raise LocalEntryNotFoundError("no network in tests")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_network)


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database, migrated and empty: making one takes seconds, copying it none."""
    if find_spec("mlflow") is None:
        pytest.skip("MLflow is not installed")
    from s2a_bench.tracking.runs import open_store

    output = tmp_path_factory.mktemp("template")
    open_store(None, output)
    return output / "mlflow.db"

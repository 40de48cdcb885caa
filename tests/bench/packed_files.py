"""Folders, tars and zips of given files, and what a tree gives of them, for tests of trees."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from s2a_bench.data.readers.tree import Tree
from s2a_bench.errors import InputError


def tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    members = (entry(f"./{name}" if mode == "w" else name, data=data) for name, data in files.items())
    return tar_of(path, *members, mode=mode)


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def refused(place: Path, words: str, archives: tuple[str, ...] = (), read: bool = True) -> str:
    """Opening a tree, or reading all of it, is one sentence that says so."""
    with pytest.raises(InputError, match=words) as caught, Tree(place, archives) as tree:
        if read:
            list(tree.read_many(tree.names))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def content(place: Path, *archives: str) -> dict[str, bytes]:
    with Tree(place, archives) as tree:
        found = dict(tree.read_many(tree.names))
        assert {name: tree.read(name) for name in tree.names} == found
        assert {name: tree.path_on_disk(name).read_bytes() for name in tree.names} == found
    return found


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, data

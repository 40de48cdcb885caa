"""Zip and tar archives behind one interface: members by path, read singly or as a stream in the archive's order."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

_SMALL = 32 << 20
"""Bytes up to which a file that is no image is kept in memory while an archive is listed."""
_IMAGE_LIKE = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".npz", ".h5")


class Archive(Protocol):
    """An archive.

    Attributes:
        path: Its file.
        members: Its files by their path.
    """

    path: Path
    members: dict[str, Any]

    def read(self, name: str) -> bytes:
        """A member's content."""
        ...

    def stream(self, names: set[str]) -> Iterator[tuple[str, bytes]]:
        """Members of these names and their content, in the archive's order."""
        ...

    def copy(self, name: str, out: IO[bytes]) -> None:
        """Writes a member's content, which may be larger than memory."""
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


def open_archive(path: Path) -> Archive:
    """Opens a zip or a tar, told apart by content.

    Raises:
        OSError: It cannot be read; other errors of ``zipfile`` and ``tarfile`` where it is broken.
    """
    return _Zip(path) if zipfile.is_zipfile(path) else _Tar(path)


class _Zip:
    """A zip, read through its central directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = zipfile.ZipFile(path)
        self.members = {}
        for info in self._archive.infolist():
            name = _strip_dot(info.filename)
            if name in self.members:
                raise zipfile.BadZipFile(f"it holds {name} twice")
            if not info.is_dir():
                self.members[name] = info.filename

    def read(self, name: str) -> bytes:
        return self._archive.read(self.members[name])

    def stream(self, names: set[str]) -> Iterator[tuple[str, bytes]]:
        for name in self.members:
            if name in names:
                yield name, self.read(name)

    def copy(self, name: str, out: IO[bytes]) -> None:
        with self._archive.open(self.members[name]) as stream:
            shutil.copyfileobj(stream, out, 1 << 20)

    def close(self) -> None:
        self._archive.close()


class _Tar:
    """A tar. It has no index: one pass lists the members and keeps small files other than images in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members = {}
        self._kept: dict[str, bytes] = {}
        free = 8 * _SMALL
        with tarfile.open(path) as archive:
            for member, name in _iterate_files(archive):
                if name in self.members:
                    raise tarfile.TarError(f"it holds {name} twice")
                self.members[name] = None
                if member.size <= min(_SMALL, free) and not name.lower().endswith(_IMAGE_LIKE):
                    self._kept[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
                    free -= member.size

    def read(self, name: str) -> bytes:
        if name in self._kept:
            return self._kept[name]
        return next(self.stream({name}))[1]

    def stream(self, names: set[str]) -> Iterator[tuple[str, bytes]]:
        left = set(names)
        with tarfile.open(self.path) as archive:
            for member, name in _iterate_files(archive):
                if name in left:
                    left.remove(name)
                    yield name, archive.extractfile(member).read()  # type: ignore[union-attr]
        if left:
            raise tarfile.TarError(f"{min(left)} is gone")

    def copy(self, name: str, out: IO[bytes]) -> None:
        with tarfile.open(self.path) as archive:
            for member, found in _iterate_files(archive):
                if found == name:
                    shutil.copyfileobj(archive.extractfile(member), out, 1 << 20)  # type: ignore[arg-type]
                    return

    def close(self) -> None:
        """Does nothing: every pass opens and closes the file."""


def _iterate_files(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
    for member in archive:
        if member.isfile():
            yield member, _strip_dot(member.name)
    # A damaged header ends the loop just as the end of the archive does. Reading the rest lets the decompressor check
    # its checksum, which reveals the damage.
    stream = archive.fileobj
    while stream is not None and stream.read(1 << 20):
        pass


def _strip_dot(name: str) -> str:
    return name[2:] if name.startswith("./") else name

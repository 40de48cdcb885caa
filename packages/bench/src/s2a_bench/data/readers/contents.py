"""Where the content of a file is: on disk, on disk and packed alone, or in an archive."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import lzma
import shutil
from pathlib import Path
from typing import IO, Any

from s2a_bench.data.limits import copy_stream, read_file, read_stream, unpacked_limit
from s2a_bench.data.readers.archives import Archive

PACKED_ALONE = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclasses.dataclass(frozen=True, slots=True)
class OnDisk:
    """A file as it lies on disk. A source may have a million of them."""

    path: Path

    @property
    def where(self) -> str:
        """Its name in error messages."""
        return str(self.path)

    def read(self) -> bytes:
        """Its content."""
        return read_file(self.path)

    def copy(self, out: IO[bytes]) -> None:
        """Writes its content."""
        with self.path.open("rb") as stream:
            shutil.copyfileobj(stream, out, 1 << 20)


@dataclasses.dataclass(frozen=True, slots=True)
class PackedAlone:
    """A file that is packed on its own: ``x.mat.gz``."""

    path: Path

    @property
    def where(self) -> str:
        """Its name in error messages."""
        return str(self.path)

    def _open(self) -> Any:
        return PACKED_ALONE[self.path.suffix.lower()](self.path, "rb")

    def read(self) -> bytes:
        """Its content."""
        with self._open() as stream:
            return read_stream(stream, self.where)

    def copy(self, out: IO[bytes]) -> None:
        """Writes its content."""
        with self._open() as stream:
            copy_stream(stream, out, unpacked_limit(self.path.stat().st_size), self.where)


@dataclasses.dataclass(frozen=True, slots=True)
class InArchive:
    """A member of an archive, which is called ``where`` in error messages."""

    archive: Archive
    name: str
    where: str

    def read(self) -> bytes:
        """Its content."""
        return self.archive.read(self.name)

    def copy(self, out: IO[bytes]) -> None:
        """Writes its content."""
        self.archive.copy(self.name, out)


Content = OnDisk | PackedAlone | InArchive


class _Hash:
    """A file that is only hashed."""

    def __init__(self) -> None:
        self.value = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.value.update(data)


def hash_copy(content: Content) -> bytes:
    """The sha256 of a content that may be larger than memory."""
    out: Any = _Hash()
    content.copy(out)
    return out.value.digest()

"""Zip and tar archives behind one interface: members by path, read singly or as a stream in the archive's order."""

from __future__ import annotations

import dataclasses
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from s2a_bench.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from s2a_bench.data.limits import check_memory, check_unpacked, copy_stream, unpacked_limit
from s2a_bench.data.readers.member_paths import clean_path, find_targets, is_hidden, link_target
from s2a_bench.errors import InputError

_SMALL = 32 << 20
"""Bytes up to which a file that is no image is kept in memory while a tar is listed."""
_NOT_KEPT = (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES, ".npz", ".h5")
_LONGEST_HEADER = 1 << 20
"""Bytes that a tar's header of long names may take."""
_LONGEST_LINK = 4096
_EXTRACT = "extract it yourself and give the folder"


@dataclasses.dataclass(frozen=True)
class Member:
    """A file of an archive.

    Attributes:
        source: What the archive reads: a ``ZipInfo``, or the path of the member of a tar that holds the content.
        size: Bytes, unpacked.
        fault: Why it has no content, as the end of a sentence; ``""``: it has.
    """

    source: Any
    size: int
    fault: str = ""


class Archive(Protocol):
    """An archive. Errors of ``zipfile`` and ``tarfile`` pass through.

    Attributes:
        path: Its file.
        members: Its files by their path; links stand for the file that they lead to, hidden files are left out.
    """

    path: Path
    members: dict[str, Member]

    def read(self, name: str) -> bytes:
        """A member's content.

        Raises:
            InputError: It is too large for memory, or has no content.
        """
        ...

    def stream(self, names: set[str]) -> Iterator[tuple[str, bytes]]:
        """Members of these names and their content, in the archive's order.

        Raises:
            InputError: As ``read``.
        """
        ...

    def copy(self, name: str, out: IO[bytes]) -> None:
        """Writes a member's content, which may be larger than memory.

        Raises:
            InputError: It has no content, or is out of all proportion to the archive.
        """
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


def open_archive(path: Path) -> Archive:
    """Opens a zip or a tar, told apart by content.

    Raises:
        InputError: It has a password, or members whose paths lead out of it.
        OSError: It cannot be read; other errors of ``zipfile`` and ``tarfile`` where it is broken.
    """
    with path.open("rb") as file:
        head = file.read(512)
    # The start decides: a tar whose last member is a zip ends like a zip.
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _Zip(path)
    return _Tar(path) if head[257:262] == b"ustar" or not zipfile.is_zipfile(path) else _Zip(path)


def _check_content(archive: Archive, name: str, memory: bool) -> Member:
    member = archive.members[name]
    if member.fault:
        raise InputError(f"{name} in {archive.path} {member.fault}; {_EXTRACT}.")
    if memory:
        check_memory(member.size, f"{name} in {archive.path}")
    return member


class _Zip:
    """A zip, read through its central directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = zipfile.ZipFile(path)
        try:
            self.members = self._list_members()
        except BaseException:
            self._archive.close()
            raise

    def _list_members(self) -> dict[str, Member]:
        files: dict[str, Member] = {}
        links: dict[str, str | None] = {}
        for info in self._archive.infolist():
            name = _decoded_name(info).replace("\\", "/")  # Some Windows tools write it so, against the format.
            if name.endswith("/"):
                continue
            name = clean_path(name, self.path)
            if name in files or name in links:
                if is_hidden(name):
                    continue
                raise zipfile.BadZipFile(f"it holds {name} twice")
            if info.flag_bits & 1 and not is_hidden(name):
                raise InputError(f"{self.path} has a password; {_EXTRACT}.")
            kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
            if kind == stat.S_IFLNK and info.file_size <= _LONGEST_LINK:
                target = self._archive.read(info).decode("utf-8", "surrogateescape")
                links[name] = link_target(name, target)
            elif kind in (0, stat.S_IFREG, stat.S_IFLNK):
                files[name] = Member(info, info.file_size)
            elif kind != stat.S_IFDIR:
                files[name] = Member(info, 0, "is a device or a pipe and no file")
        return _visible(files, links)

    def read(self, name: str) -> bytes:
        return self._archive.read(_check_content(self, name, memory=True).source)

    def stream(self, names: set[str]) -> Iterator[tuple[str, bytes]]:
        for name in self.members:
            if name in names:
                yield name, self.read(name)

    def copy(self, name: str, out: IO[bytes]) -> None:
        member = _check_content(self, name, memory=False)
        what = f"{name} in {self.path}"
        limit = unpacked_limit(member.source.compress_size)
        check_unpacked(member.size, limit, what)
        with self._archive.open(member.source) as stream:
            copy_stream(stream, out, limit, what)

    def close(self) -> None:
        self._archive.close()


def _decoded_name(info: zipfile.ZipInfo) -> str:
    """A zip's name for a member; without the flag for UTF-8 it is UTF-8 where it can be, as many tools leave it out."""
    if info.flag_bits & 0x800 or info.orig_filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.filename


class _StrictHeader(tarfile.TarInfo):
    """A header that is an error where it is damaged or missing: ``tarfile`` takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictHeader:  # type: ignore[override]
        try:
            found = super().fromtarfile(archive)
            found._check_size()
            return found
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark of the end: a block of zeros
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is damaged or cut off ({error})") from error

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        """The hook that ``tarfile`` leaves to subclasses; it reads long names whole into memory."""
        self._check_size()
        if self.type in _EXTENDED_HEADERS and self.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header takes {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _check_size(self) -> None:
        if self.size < 0:  # ``tarfile`` would go back, and round and round.
            raise tarfile.ReadError(f"{self.name[:80]} states a size of {self.size}")


_EXTENDED_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Tar:
    """A tar. It has no index: one pass lists the members and keeps small files other than images in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, bytes] = {}
        files: dict[str, Member] = {}
        links: dict[str, str | None] = {}
        free = 8 * _SMALL
        with self._open() as archive:
            for member, name in self._iterate(archive):
                if name in files or name in links:
                    if is_hidden(name):
                        continue
                    raise tarfile.TarError(f"it holds {name} twice")
                if member.islnk():
                    links[name] = clean_path(member.linkname, path)
                elif member.issym():
                    links[name] = link_target(name, member.linkname)
                elif not member.isreg():
                    files[name] = Member(name, 0, "is a device or a pipe and no file")
                else:
                    files[name] = Member(name, member.size)
                    if member.size <= min(_SMALL, free) and not name.lower().endswith(_NOT_KEPT):
                        self._kept[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
                        free -= member.size
        self.members = _visible(files, links)

    def _open(self) -> tarfile.TarFile:
        return tarfile.open(self.path, encoding="utf-8", errors="surrogateescape", tarinfo=_StrictHeader)

    def _iterate(self, archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
        limit = unpacked_limit(self.path.stat().st_size)
        for member in archive:
            check_unpacked(member.offset_data + member.size, limit, str(self.path))
            if not member.isdir():
                yield member, clean_path(member.name, self.path)
        # Reading the rest lets the decompressor check its checksum, which reveals damage.
        stream = archive.fileobj
        rest = 0
        while stream is not None and (block := stream.read(1 << 20)):
            rest += len(block)
            check_unpacked(rest, limit, str(self.path))

    def read(self, name: str) -> bytes:
        source = _check_content(self, name, memory=True).source
        if source in self._kept:
            return self._kept[source]
        return next(self.stream({name}))[1]

    def stream(self, names: set[str]) -> Iterator[tuple[str, bytes]]:
        # A file and the links to it come together, so that the archive is read once.
        left: dict[str, list[str]] = {}
        for name in self.members:
            if name in names:
                left.setdefault(_check_content(self, name, memory=True).source, []).append(name)
        with self._open() as archive:
            for member, source in self._iterate(archive):
                if member.isreg() and source in left:
                    data = archive.extractfile(member).read()  # type: ignore[union-attr]
                    for name in left.pop(source):
                        yield name, data
        if left:
            raise tarfile.TarError(f"{min(left)} is gone")

    def copy(self, name: str, out: IO[bytes]) -> None:
        source, what = _check_content(self, name, memory=False).source, f"{name} in {self.path}"
        with self._open() as archive:
            for member, found in self._iterate(archive):
                if found == source and member.isreg():
                    stream = archive.extractfile(member)
                    assert stream is not None
                    copy_stream(stream, out, unpacked_limit(self.path.stat().st_size), what)
                    return
        raise tarfile.TarError(f"{source} is gone")

    def close(self) -> None:
        """Does nothing: every pass opens and closes the file."""


def _visible(files: dict[str, Member], links: dict[str, str | None]) -> dict[str, Member]:
    """The files, and for each link the file that it leads to; hidden ones are left out."""
    every = dict(files)
    for name, target in find_targets(files, links).items():
        every[name] = files[target] if target else Member("", 0, "is a link to something that is not in the archive")
    return {name: member for name, member in every.items() if not is_hidden(name)}

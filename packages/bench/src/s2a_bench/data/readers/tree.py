"""Read-only access to a download, whether folder, archive or folder of archives, by path."""

from __future__ import annotations

import errno
import fnmatch
import gzip
import hashlib
import lzma
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from s2a_bench.data.readers.archives import Archive, open_archive
from s2a_bench.data.readers.contents import PACKED_ALONE, Content, InArchive, OnDisk, PackedAlone, hash_copy
from s2a_bench.data.readers.member_paths import is_hidden
from s2a_bench.data.readers.walk import list_files, path_exists
from s2a_bench.data.text import decode_text
from s2a_bench.errors import InputError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_UNREAD_ARCHIVES = (".rar", ".7z", ".zst", ".lz", ".lz4", ".z")
_DEEPEST = 4
"""How deep archives may lie in archives: one made to unpack itself goes on for ever."""
_LONGEST_NAME = 200
"""Bytes of a file name that is kept where a file is unpacked to disk."""

ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    # What the parsers raise where lengths and numbers make no sense:
    struct.error,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)


class Tree:
    """The files of a download by path (``/`` between parts, no leading ``/``), packed or not.

    Hidden files and macOS's ``__MACOSX`` copies are left out. Archives among ``archives`` are looked into; any other
    file is only a file. A file packed alone (``x.mat.gz``) is listed, and read, unpacked (``x.mat``). Where a path is
    found twice, in two archives or packed and unpacked, both must hold the same.

    Use it as a context manager: what had to be unpacked to disk is deleted at its end.

    Attributes:
        place: The path that was given.
        folder: ``place``, if the tree is that folder's files as they lie there.
    """

    def __init__(self, place: Path, archives: Iterable[str] = ()) -> None:
        """Lists the files.

        Args:
            place: Folder or file.
            archives: Names of archives to look into, with ``*`` for anything and in upper or lower case; where a
                folder holds some of them, the tree is their content and the files next to them, and not the folder's
                sub-folders.

        Raises:
            InputError: Nothing there, or an archive that is broken or has a password.
        """
        self.place = place
        self.folder: Path | None = None
        self._files: dict[str, list[Content]] = {}
        self._packs: list[tuple[Archive, str]] = []  # with their names in error messages
        self._scratch: Path | None = None
        self._unpacked = 0
        self._on_disk: dict[str, Path] = {}
        self._archives = tuple(name.lower() for name in archives if name)  # the name of "." is empty
        try:
            self._open(place)
        except BaseException:
            self.close()
            raise
        self.names: list[str] = sorted(self._files)
        """Every path, sorted."""

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Deletes what was unpacked to disk."""
        for pack, _ in self._packs:
            pack.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    # --- Finding -----------------------------------------------------------------------------------------------------

    def files_under(self, folder: str) -> list[str]:
        """Paths below a folder of that name (one or more parts), at whatever depth it lies, sorted."""
        parts = tuple(PurePosixPath(folder).parts)
        return [name for name in self.names if _path_below(name, parts) is not None]

    def has(self, path: str) -> bool:
        """Whether some path ends with ``path``, part by part."""
        return self._paths_ending_with(path) != []

    def find(self, path: str) -> str:
        """The one path that ends with ``path``, part by part.

        Raises:
            InputError: None or several do.
        """
        found = self._paths_ending_with(path)
        if len(found) != 1:
            state = "holds no" if not found else f"holds {len(found)} times a"
            raise InputError(f"{self.place} {state} {path}; give the complete download, or the folder that holds it.")
        return found[0]

    def _paths_ending_with(self, path: str) -> list[str]:
        tail = "/" + path
        return [name for name in self._files if name == path or name.endswith(tail)]

    # --- Reading -----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """The content of one file; ``read_many`` is far quicker for many in a compressed archive.

        Raises:
            InputError: It is not there, cannot be read or is too large for memory, or two archives hold it otherwise.
        """
        first, *others = self._find_files(name)
        with self._explain_errors(first.where):
            data = first.read()
        for other in others:
            with self._explain_errors(other.where):
                self._check_same(name, first, other, data, other.read())
        return data

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """``(path, content)`` of some files, each once, in the order in which they are packed.

        Raises:
            InputError: As ``read``.
        """
        wanted = {name: self._find_files(name) for name in sorted(set(names))}
        digests: dict[str, bytes] = {}  # of those that are found twice

        def is_first(name: str, file: Content, data: bytes) -> bool:
            first, *others = wanted[name]
            if others:
                digest = _digest(data)
                self._check_same(name, first, file, digests.setdefault(name, digest), digest)
            return file is first

        for name, found in wanted.items():
            for file in found:
                if not isinstance(file, InArchive):
                    with self._explain_errors(file.where):
                        data = file.read()
                    if is_first(name, file, data):
                        yield name, data
        for pack, where in self._packs:
            mine = {
                n: c for n, found in wanted.items() for c in found if isinstance(c, InArchive) and c.archive is pack
            }
            if mine:
                with self._explain_errors(where):
                    for name, data in pack.stream(set(mine)):
                        if is_first(name, mine[name], data):
                            yield name, data

    def read_text(self, name: str) -> str:
        """A text file's content, as ``text.decode_text`` takes it.

        Raises:
            InputError: As ``read``, or it is not text.
        """
        return decode_text(self.read(name), f"{name} in {self.place}")

    def path_on_disk(self, name: str) -> Path:
        """A path on disk with a file's content, for libraries that open files themselves; unpacked first if need be.

        Raises:
            InputError: As ``read``, or there is no room for it.
        """
        first, *others = self._find_files(name)
        if name not in self._on_disk:
            if isinstance(first, OnDisk):
                path = first.path
            else:
                path = self._scratch_path(PurePosixPath(name).name)
                self._unpack(first, path)
            for other in others:
                with self._explain_errors(other.where):
                    self._check_same(name, first, other, hash_copy(first), hash_copy(other))
            self._on_disk[name] = path
        return self._on_disk[name]

    def _find_files(self, name: str) -> list[Content]:
        if name not in self._files:
            raise InputError(f"{self.place} holds no file {name}; download it again.")
        return self._files[name]

    def _check_same(self, name: str, first: Content, other: Content, one: bytes, two: bytes) -> None:
        """Refuses another content, or digest, of the same file."""
        if one != two:
            raise InputError(
                f"{first.where} and {other.where} both hold {name}, each with another content; give the one that is "
                "meant, or extract them yourself into folders of their own."
            )

    def _scratch_path(self, name: str) -> Path:
        """A new path in the temporary folder, which ends like ``name``."""
        try:
            if self._scratch is None:
                self._scratch = Path(tempfile.mkdtemp(prefix="s2a-source-"))
            folder = self._scratch / f"{self._unpacked:05d}"
            self._unpacked += 1
            folder.mkdir()
        except OSError as error:
            raise InputError(
                f"{self.place} has to be unpacked, but there is no folder for it ({error.strerror or error}); name one "
                "with the environment variable TMPDIR."
            ) from error
        short = len(name.encode("utf-8", "surrogateescape")) <= _LONGEST_NAME
        return folder / (name if short else f"file{PurePosixPath(name).suffix[:16]}")

    def _unpack(self, file: Content, path: Path) -> None:
        partial = path.with_name(path.name + ".partial")  # so that an interrupted copy is never used
        try:
            with self._explain_errors(file.where), partial.open("wb") as out:
                file.copy(out)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    # --- Opening -----------------------------------------------------------------------------------------------------

    def _open(self, place: Path) -> None:
        there = path_exists(place)
        if there and place.is_dir():
            # Downloads often lie one folder deeper: <place>/caltech-101/101_ObjectCategories.tar.gz.
            near = [path for path in list_files(place, depth=2) if self._is_listed_archive(path.name)]
            packs = [path for path in near if path.parent == place] or near
            if packs:
                for path in sorted({p for pack in packs for p in pack.parent.iterdir() if p.is_file()} - set(packs)):
                    self._add_file(path, path.name)
                for path in packs:
                    self._add_archive(path, str(path), 1)
            else:
                self.folder = place
                for path in list_files(place):
                    name = path.relative_to(place).as_posix()
                    if "\\" in name:  # A zip made on Windows was extracted by a tool that took it by the letter.
                        name, self.folder = name.replace("\\", "/"), None
                    self._add_file(path, name)
        elif there and place.is_file():
            if place.name.lower().endswith(ARCHIVE_SUFFIXES) or self._is_listed_archive(place.name):
                self._add_archive(place, str(place), 1)
            elif place.suffix.lower() in _UNREAD_ARCHIVES:
                raise InputError(f"{place} is an archive of a kind that is not read here; extract it, give the folder.")
            else:
                self._add_file(place, place.name)
        else:
            state = "is no file and no folder" if there else "does not exist"
            raise InputError(f"Source {_shorten(str(place))} {state}; give the archive, or the folder that holds it.")

    def _is_listed_archive(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in self._archives)

    def _add_file(self, path: Path, name: str) -> None:
        if is_hidden(name):
            return
        suffix = path.suffix.lower()
        if suffix in PACKED_ALONE and not path.name.lower().endswith(ARCHIVE_SUFFIXES):
            self._files.setdefault(name[: -len(suffix)], []).append(PackedAlone(path))
        else:
            self._files.setdefault(name, []).insert(0, OnDisk(path))  # before the same file packed

    def _add_archive(self, path: Path, where: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise InputError(f"{where} lies in {_DEEPEST} archives, one in another; extract it yourself and give it.")
        with self._explain_errors(where):
            pack = open_archive(path)
        self._packs.append((pack, where))
        for name in pack.members:
            inner = PurePosixPath(name).name
            if self._is_listed_archive(inner) and name.lower().endswith(ARCHIVE_SUFFIXES):
                unpacked = self._scratch_path(inner)
                self._unpack(InArchive(pack, name, where), unpacked)
                self._add_archive(unpacked, f"{name} in {where}", depth + 1)
            else:
                self._files.setdefault(name, []).append(InArchive(pack, name, where))

    @contextmanager
    def _explain_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except OSError as error:  # gzip.BadGzipFile is one.
            reason = error.strerror or error
            if isinstance(error, gzip.BadGzipFile):
                raise InputError(f"{what} is not a readable archive ({reason}); download it again.") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InputError(
                    f"There is no room to unpack {what} in {tempfile.gettempdir()} ({reason}); make room, or name "
                    "another folder with the environment variable TMPDIR."
                ) from error
            raise InputError(f"{what} cannot be read ({reason}); check the file and its permissions.") from error
        except NotImplementedError as error:
            raise InputError(
                f"{what} is packed in a way that cannot be read here ({error}); extract it yourself and give the "
                "folder."
            ) from error
        except ARCHIVE_ERRORS as error:
            if "multiple disks" in str(error):
                raise InputError(
                    f"{what} is one part of an archive in several; extract all of them yourself and give the folder."
                ) from error
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
            raise InputError(f"{what} is not a readable archive ({reason}); download it again.") from error


def _shorten(path: str) -> str:
    return path if len(path) <= 300 else f"{path[:150]}...{path[-100:]}"


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _path_below(name: str, parts: tuple[str, ...]) -> str | None:
    """The part of a path below a folder; ``None``: it is not below it."""
    own = name.split("/")
    for i in range(len(own) - len(parts)):
        if tuple(own[i : i + len(parts)]) == parts:
            return "/".join(own[i + len(parts) :])
    return None


def path_below(name: str, folder: str) -> str:
    """The part of ``name`` below ``folder``; ``name`` comes from ``Tree.files_under(folder)``."""
    rest = _path_below(name, tuple(PurePosixPath(folder).parts))
    assert rest is not None, (name, folder)
    return rest

"""Read-only access to a download, whether folder, archive or folder of archives, by path."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from s2a_bench.data.readers.archives import Archive, open_archive
from s2a_bench.errors import InputError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a zip with an unknown compression
    RuntimeError,  # an encrypted zip
)


class Tree:
    """The files of a download by path (``/`` between parts, no leading ``/``), packed or not.

    Hidden files and macOS's ``__MACOSX`` copies are left out. Archives among ``archives`` are looked into; any other
    file is only a file. A file packed alone (``x.mat.gz``) is listed, and read, unpacked (``x.mat``).

    Use it as a context manager: what had to be unpacked to disk is deleted at its end.

    Attributes:
        place: The path that was given.
        folder: ``place``, if the tree is that folder's files as they lie there.
    """

    def __init__(self, place: Path, archives: Iterable[str] = ()) -> None:
        """Lists the files.

        Args:
            place: Folder or file.
            archives: Names of archives to look into, with ``*`` for anything; where a folder holds some of them, the
                tree is their content and the files next to them, and not the folder's sub-folders.

        Raises:
            InputError: Nothing there, or a broken archive.
        """
        self.place = place
        self.folder: Path | None = None
        self._readers: dict[str, tuple[int, Callable[[], bytes]]] = {}
        self._packs: list[Archive] = []
        self._scratch: Path | None = None
        self._archives = tuple(name for name in archives if name)  # the name of "." is empty
        try:
            self._open(place)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Deletes what was unpacked to disk."""
        for pack in self._packs:
            pack.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    # --- Finding -----------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Every path, sorted."""
        return sorted(self._readers)

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
        return [name for name in self._readers if name == path or name.endswith(tail)]

    # --- Reading -----------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """The content of one file; ``read_many`` is far quicker for many in a compressed archive.

        Raises:
            InputError: It is not there or cannot be read.
        """
        if name not in self._readers:
            raise InputError(f"{self.place} holds no file {name}; download it again.")
        with self._explain_errors(name):
            return self._readers[name][1]()

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """``(path, content)`` of some files, each once, in the order in which they are packed.

        Raises:
            InputError: As ``read``.
        """
        wanted = set(names)
        for name in sorted(wanted, key=lambda name: (self._readers[name][0] if name in self._readers else -1, name)):
            if name not in self._readers or self._readers[name][0] < 0:
                yield name, self.read(name)
        for number, pack in enumerate(self._packs):
            # Two archives may hold the same path; each comes once, from the one that ``read`` takes.
            mine = {name for name in wanted & pack.members.keys() if self._readers[name][0] == number}
            if mine:
                with self._explain_errors(str(pack.path)):
                    yield from pack.stream(mine)

    def read_text(self, name: str) -> str:
        """A file as UTF-8 text.

        Raises:
            InputError: As ``read``, or it is not text.
        """
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{name} in {self.place} is not text ({error.reason} at byte {error.start}).") from error

    def path_on_disk(self, name: str) -> Path:
        """A path on disk with a file's content, for libraries that open files themselves; unpacked first if need be.

        Raises:
            InputError: As ``read``.
        """
        if self.folder is not None and (self.folder / name).is_file():
            return self.folder / name
        if self.place.is_file() and name == self.place.name:
            return self.place
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="s2a-source-"))
        path = self._scratch / name.replace("/", "__")
        if not path.exists():
            with self._explain_errors(name):
                pack = next((p for p in self._packs if name in p.members), None)
                partial = path.with_name(path.name + ".partial")  # so that an interrupted copy is never used
                with partial.open("wb") as out:
                    if pack is not None:
                        pack.copy(name, out)
                    elif name in self._packed:
                        with self._packed[name]() as stream:
                            shutil.copyfileobj(stream, out, 1 << 20)
                    else:
                        out.write(self._readers[name][1]())
                partial.rename(path)
        return path

    # --- Opening -----------------------------------------------------------------------------------------------------

    def _open(self, place: Path) -> None:
        self._packed: dict[str, Callable[[], Any]] = {}
        if place.is_dir():
            packs = [path for path in _list_files(place) if self._is_listed_archive(path.name) and path.parent == place]
            # Downloads often lie one folder deeper: <place>/caltech-101/101_ObjectCategories.tar.gz.
            packs = packs or [p for p in _list_files(place, depth=2) if self._is_listed_archive(p.name)]
            if packs:
                for path in packs:
                    self._add_archive(path)
                for path in {p for pack in packs for p in pack.parent.iterdir() if p.is_file()} - set(packs):
                    self._add_file(path, path.name)
            else:
                self.folder = place
                for path in _list_files(place):
                    self._add_file(path, path.relative_to(place).as_posix())
        elif place.is_file():
            if place.name.lower().endswith(ARCHIVE_SUFFIXES) or self._is_listed_archive(place.name):
                self._add_archive(place)
            else:
                self._add_file(place, place.name)
        else:
            raise InputError(f"Source {place} does not exist; give the archive, or the folder that holds it.")

    def _is_listed_archive(self, name: str) -> bool:
        return any(name == pattern or PurePosixPath(name).match(pattern) for pattern in self._archives)

    def _add_file(self, path: Path, name: str) -> None:
        if _is_hidden(name):
            return
        suffix = path.suffix.lower()
        if suffix in _COMPRESSED and not path.name.lower().endswith(ARCHIVE_SUFFIXES):
            name = name[: -len(suffix)]
            opened = _COMPRESSED[suffix]
            self._packed[name] = lambda: opened(path, "rb")
            self._readers[name] = (-1, lambda: _read_all(opened(path, "rb")))
        else:
            self._readers[name] = (-1, path.read_bytes)

    def _add_archive(self, path: Path) -> None:
        with self._explain_errors(str(path)):
            pack = open_archive(path)
        self._packs.append(pack)
        for name in pack.members:
            if self._is_listed_archive(PurePosixPath(name).name) and name.lower().endswith(ARCHIVE_SUFFIXES):
                self._add_archive(self._extract_inner(pack, name))
            elif not _is_hidden(name):
                self._readers[name] = (len(self._packs) - 1, lambda pack=pack, name=name: pack.read(name))

    def _extract_inner(self, pack: Archive, name: str) -> Path:
        """Copies an archive within an archive to disk."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="s2a-source-"))
        path = self._scratch / PurePosixPath(name).name
        with self._explain_errors(f"{pack.path} ({name})"), path.open("wb") as out:
            pack.copy(name, out)
        return path

    @contextmanager
    def _explain_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except ARCHIVE_ERRORS as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
            raise InputError(f"{what} is not a readable archive ({reason}); download it again.") from error
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{what} cannot be read ({reason}); check the file and its permissions.") from error


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _list_files(folder: Path, depth: int = 64) -> list[Path]:
    found: list[Path] = []
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error
    for path in inside:
        if path.is_dir() and depth > 1 and not path.name.startswith("."):
            found += _list_files(path, depth - 1)
        elif path.is_file():
            found.append(path)
    return found


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


def _read_all(stream: Any) -> bytes:
    with stream:
        return stream.read()

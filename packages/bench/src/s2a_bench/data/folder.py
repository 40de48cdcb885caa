"""Reads the standard folder of a prepared dataset: four lists, images, a manifest, a content hash.

<root>/<dataset>/train800.txt val200.txt train800val200.txt test.txt    lines "images/test/000000.jpg 17"
                 (suites other than vtab: train.txt val.txt trainval.txt test.txt)
<root>/<dataset>/images/...
<root>/<dataset>/manifest.json    hashes, seed, split; written by ``prepare_dataset``, absent in other tools' folders
<root>/<dataset>/.cache/          may be deleted at any time
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2a_bench.data.images import LOSSY_SUFFIXES, read_image_bytes
from s2a_bench.data.limits import read_file
from s2a_bench.data.table.types import Dataset
from s2a_bench.data.text import decode_text
from s2a_bench.errors import InputError
from s2a_bench.files import write_atomic

MANIFEST = "manifest.json"
CACHE = ".cache"
MANIFEST_SCHEMA = 1

_JSON_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a JSON file raises that is damaged, nested without end, or holds other values than expected."""


@dataclasses.dataclass(frozen=True)
class ListedImage:
    """One line of a list: the image's path under the dataset's folder, its label, and the line's number from 1."""

    path: str
    label: int
    line: int


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """Hash, size and label of one image in the manifest; ``source`` is its name in the source."""

    sha256: str
    bytes: int
    source: str
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Where a folder came from and what it must contain.

    Attributes:
        dataset: Its name.
        data_id: 16 hex digits over the hashes of all lists and images.
        split_id: Names the rule or files that chose the lists, e.g. ``"s2a-seed0-v1"``.
        seed: Seed of that choice.
        source_id: 16 hex digits over names and content of every image of the source, however it was packed.
        source: File or folder name it came from, without its path.
        lossy: Whether images were re-encoded with loss after publication.
        classes: Names in label order.
        counts: Images per list.
        lists: sha256 per list file.
        files: Hash, size and label per image path.
        note: What a reader of results must know about the split.
        code: Version of this package and, as ``recipe``, of the rules for lists.
        synthetic: Whether this package made the source; its counts then differ from the table's.
        home: Folder of the images where they are used in place; ``""``: the manifest's own.
        own: How the user's own images became this dataset: their ``format``, which lists were ``drawn`` and by which
            ``fractions``, what was grouped and skipped; ``None``: a dataset of the table.
    """

    dataset: str
    data_id: str
    split_id: str
    seed: int
    source_id: str
    source: str
    lossy: bool
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    lists: Mapping[str, str]
    files: Mapping[str, FileInfo]
    note: str
    code: Mapping[str, str]
    synthetic: bool = False
    home: str = ""
    own: Mapping[str, Any] | None = None

    @property
    def upright(self) -> bool:
        """Whether images that ask for a rotation (EXIF) are turned: the user's own are, others stay as published."""
        return self.own is not None

    def expected(self, name: str, dataset: Dataset) -> int | None:
        """Images that a list must have."""
        return self.counts.get(name) if self.synthetic else dataset.count(name)

    def to_json(self) -> str:
        """The content of ``manifest.json``."""
        return json.dumps({"schema": MANIFEST_SCHEMA, **dataclasses.asdict(self)}, indent=1) + "\n"


@dataclasses.dataclass(frozen=True)
class DataIdentity:
    """The fields of a record that identify the data of a folder."""

    data_id: str
    split_id: str
    lossy: bool
    synthetic: bool = False


@dataclasses.dataclass(frozen=True)
class RememberedFile:
    """An image as it was when a folder without manifest was identified: its hash, size and time of modification."""

    sha256: str
    bytes: int
    mtime_ns: int


def image_root(folder: Path, manifest: Manifest | None) -> Path:
    """The folder that paths of lists are relative to."""
    return Path(manifest.home) if manifest is not None and manifest.home else folder


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def compute_content_id(lists: Mapping[str, str], files: Mapping[str, str]) -> str:
    """Hash of a dataset's content: the first 16 hex digits of the sha256 of its sorted hashes as JSON.

    Args:
        lists: sha256 per list file name.
        files: sha256 per image path.
    """
    return sha256(json.dumps([sorted(lists.items()), sorted(files.items())]).encode())[:16]


def find_dataset_folder(dataset: Dataset, root: Path | str | None) -> Path:
    """Finds the dataset's folder under a data root, by its name or an alias.

    Raises:
        InputError: No root given, or nothing there.
    """
    how = f"get it from {dataset.where} and put its folder there (data/README.md shows the layout)"
    if dataset.preparation is not None:
        command = f"s2a-bench data prepare {dataset.name} --from DOWNLOAD --data-dir {shlex.quote(str(root or 'DIR'))}"
        how = f"run `{command}`, with a download from {dataset.where}"
    if root is None:
        raise InputError(f"Dataset {dataset.name!r} needs images on disk but no data folder was given; {how}.")
    for name in (dataset.name, *dataset.aliases):
        folder = Path(root) / name
        # Two suites share aliases, and the name of the test list: only the others tell their folders apart.
        telling = dataset.lists if name == dataset.name else dataset.lists[:3]
        if any((folder / f"{each}.txt").is_file() for each in telling):
            return folder
    looked = Path(root) / dataset.name
    raise InputError(f"Dataset {dataset.name!r} was not found: no list of images in {looked}; {how}.")


def parse_list(text: str, classes: int) -> Iterator[ListedImage | tuple[int, str]]:
    """Yields the images of a list, and ``(line, message)`` for each malformed line. Empty lines are skipped."""
    for number, line in enumerate(text.split("\n"), start=1):  # A name may hold what Unicode takes for a line end.
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        path = path.strip()
        parts = path.split("/")
        if not path or not label.isascii() or not label.isdigit():
            yield number, f"{line!r} is not of the form 'images/test/000000.jpg 17'"
        elif path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
            yield number, f"{path!r} is not a plain path under the dataset's folder"
        elif len(label) > 9 or int(label) >= classes:
            yield number, f"label {label[:20]} is out of range; there are {classes} classes, counted from 0"
        else:
            yield ListedImage(path, int(label), number)


def read_list_bytes(folder: Path, name: str) -> bytes:
    """The content of ``<folder>/<name>.txt``.

    Raises:
        InputError: It is missing, cannot be read or is far too large.
    """
    path = folder / f"{name}.txt"
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(
            f"List {path} cannot be read ({error.strerror}); the folder is not a complete dataset folder."
        ) from error


def decode_list(data: bytes, path: Path) -> str:
    """A list's text.

    Raises:
        InputError: It is not text.
    """
    return decode_text(data, f"List {path}")


def read_list(folder: Path, name: str, dataset: Dataset, manifest: Manifest | None = None) -> list[ListedImage]:
    """Reads a list; the first fault in it is an error.

    Args:
        folder: The dataset's folder.
        name: One of ``dataset.lists``.
        dataset: Gives the number of classes and images.
        manifest: What the list must hash to.

    Raises:
        InputError: Missing or unreadable, a malformed line, a repeated image, a count that is not the table's, or a
            content that is not the manifest's.
    """
    path = folder / f"{name}.txt"
    data = read_list_bytes(folder, name)
    if manifest is not None and sha256(data) != manifest.lists.get(path.name):
        raise InputError(f"List {path} was changed after it was prepared; prepare {dataset.name} again.")
    entries: list[ListedImage] = []
    seen: set[str] = set()
    for item in parse_list(decode_list(data, path), dataset.classes):
        if not isinstance(item, ListedImage):
            raise InputError(f"{path}:{item[0]}: {item[1]}.")
        if item.path in seen:
            raise InputError(f"{path}:{item.line}: {item.path} is listed twice.")
        seen.add(item.path)
        entries.append(item)
    expected = dataset.count(name) if manifest is None else manifest.expected(name, dataset)
    if expected is not None and len(entries) != expected:
        raise InputError(
            f"List {path} has {len(entries)} images but {dataset.name} has {expected}; the folder is not the "
            "standard split."
        )
    return entries


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or ``None`` where another tool made the folder.

    Raises:
        InputError: It is there but broken.
    """
    path = folder / MANIFEST
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("schema") != MANIFEST_SCHEMA:
            raise ValueError("another schema version")
        values["files"] = {name: FileInfo(**info) for name, info in values["files"].items()}
        if not isinstance(values["classes"], list):
            raise TypeError("no list of classes")
        values["classes"] = tuple(values["classes"])
        manifest = Manifest(**values)
        _check_types(manifest)
        return manifest
    except FileNotFoundError:
        return None
    except (OSError, *_JSON_ERRORS) as error:
        raise InputError(f"Manifest {path} cannot be used ({error!r}); prepare the dataset again.") from error


def _check_types(manifest: Manifest) -> None:
    """Refuses values that are not what ``Manifest`` states: some would go into records, others fail far from here."""
    m, files = manifest, manifest.files.values()
    values: dict[type, tuple[object, ...]] = {
        str: (m.dataset, m.data_id, m.split_id, m.source_id, m.source, m.note, m.home, *m.classes),
        int: (m.seed, *m.counts.values()),
        bool: (m.lossy, m.synthetic),
    }
    values[str] += (*m.lists.values(), *m.code.values(), *(text for f in files for text in (f.sha256, f.source)))
    if m.own is not None and not (isinstance(m.own, dict) and isinstance(m.own.get("format"), str)):
        raise TypeError(f"own={m.own!r:.80} where an object with a format is expected")
    values[int] += (*(f.bytes for f in files), *(f.label for f in files if f.label is not None))
    for kind, found in values.items():
        for value in found:
            if type(value) is not kind:
                raise TypeError(f"{value!r:.80} where {kind.__name__} is expected")


def identify_folder(
    folder: Path, entries: Mapping[str, Sequence[ListedImage]], manifest: Manifest | None
) -> DataIdentity:
    """Identifies the data of a folder, by its manifest or, without one, by its content.

    Without a manifest every listed file is read and hashed once; the result is cached under ``.cache`` for as long as
    names, sizes and times of modification and change stay the same. It covers only the given lists. Any JPEG counts
    as lossy: the common tools that write this layout re-encode every image.

    Args:
        folder: The dataset's folder.
        entries: The lists that are used, by name.
        manifest: Of the folder, if it has one.

    Raises:
        InputError: A listed image is missing or has another size than the manifest says.
    """
    paths = sorted({entry.path for each in entries.values() for entry in each})
    stats: dict[str, os.stat_result] = {}
    images = image_root(folder, manifest)
    for path in paths:
        try:
            stats[path] = (images / path).stat()
        except OSError as error:
            name, line = next((n, e.line) for n, each in entries.items() for e in each if e.path == path)
            raise InputError(
                f"{folder / name}.txt:{line}: image {path} cannot be read ({error.strerror}); put it back, "
                "or prepare the dataset again."
            ) from error
        if manifest is not None and (path not in manifest.files or manifest.files[path].bytes != stats[path].st_size):
            raise InputError(f"Image {images / path} is not what was prepared; prepare {manifest.dataset} again.")
    if manifest is not None:
        return DataIdentity(manifest.data_id, manifest.split_id, manifest.lossy, manifest.synthetic)
    lists = {f"{name}.txt": sha256(read_list_bytes(folder, name)) for name in sorted(entries)}
    lossy = any(path.lower().endswith(LOSSY_SUFFIXES) for path in paths)
    split_id = "lists-" + compute_content_id(lists, {})
    # The time of change, unlike that of modification, cannot be set back by whoever replaces an image.
    stamp = [[path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for path, stat in stats.items()]
    key = sha256(json.dumps([sorted(lists.items()), stamp]).encode())
    cached = folder / CACHE / f"identity-{'-'.join(sorted(entries))}.json"
    with contextlib.suppress(OSError, *_JSON_ERRORS):
        known = json.loads(cached.read_text(encoding="utf-8"))
        hashes = {path: each["sha256"] for path, each in known["files"].items()}
        if known["key"] == key and known["data_id"] == compute_content_id(lists, hashes):
            return DataIdentity(known["data_id"], split_id, lossy)
    hashes = {path: sha256(read_image_bytes(folder / path)) for path in paths}
    data_id = compute_content_id(lists, hashes)
    remembered = {
        path: dataclasses.asdict(RememberedFile(hashes[path], stat.st_size, stat.st_mtime_ns))
        for path, stat in stats.items()
    }
    with contextlib.suppress(OSError):
        write_atomic(cached, json.dumps({"key": key, "data_id": data_id, "files": remembered}))
    return DataIdentity(data_id, split_id, lossy)


def read_remembered(folder: Path) -> dict[str, RememberedFile]:
    """What ``identify_folder`` remembers of images, by path; damaged files and those of earlier versions hold none."""
    found: dict[str, RememberedFile] = {}
    for cached in sorted((folder / CACHE).glob("identity-*.json")):
        with contextlib.suppress(OSError, *_JSON_ERRORS):
            known = json.loads(cached.read_text(encoding="utf-8"))
            found |= {str(path): RememberedFile(**each) for path, each in known["files"].items()}
    return found

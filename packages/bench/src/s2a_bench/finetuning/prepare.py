"""From what a user has to the standard folder ``<output>/data/NAME``, made in a temporary folder first.

Until everything about a fine-tuning has been checked nothing is written to the output folder: the standard folder is
made in ``.OUTPUT.PID.preparing`` (beside an output folder that is not there yet), and moved when the rest is known to
be good.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from s2a_bench.data.folder import Manifest, image_root, read_manifest
from s2a_bench.data.table.own import NAME_PATTERN, TAKEN_NAMES
from s2a_bench.errors import InputError
from s2a_bench.files import make_folder, process_runs, sync_folder, write_atomic
from s2a_bench.finetuning.request import PREPARATION, FinetuneRequest, find_source, is_prepared

Progress = Callable[[str, int, int], None]
"""What is done, and how much of how much."""

_ENDINGS = re.compile(r"(\.(csv|tsv|parquet|pq|zip|tar|tgz|tbz2|txz|gz|bz2|xz|json|jsonl))+$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A standard folder of own images.

    Attributes:
        name: Of the dataset.
        root: Data root that holds it now.
        manifest: Its manifest.
        source: What the user gave.
        stamp: What the source looked like, for the next run; ``None``: the folder was prepared by the user.
        staged: It lies in the temporary folder, and is to be moved.
    """

    name: str
    root: Path
    manifest: Manifest
    source: Path
    stamp: str | None = None
    staged: bool = False

    @property
    def folder(self) -> Path:
        """The standard folder."""
        return self.root / self.name

    @property
    def images(self) -> Path:
        """The folder that the lists' paths are relative to."""
        return image_root(self.folder, self.manifest)


def prepare(request: FinetuneRequest, stage: Path, progress: Progress) -> PreparedData:
    """The standard folder of a request's data: the one that is there, or a new one in ``stage``.

    Args:
        request: The request.
        stage: The temporary folder, see ``staging``.
        progress: Told what is done.

    Raises:
        InputError: Data that cannot be used, one sentence for each mistake.
    """
    source = find_source(request)
    if is_prepared(source):
        found = PreparedData(source.name, source.parent, _read_own(source), source)
    else:
        found = _prepare_source(request, source, stage, progress)
    for name in ("train", "val"):
        if not found.manifest.counts.get(name):
            raise InputError(
                f"{source} has no {name} images, which choose the best epoch; prepare it with a share of them: "
                "--val 0.1, for example."
                if name == "val"
                else f"{source} has no training images."
            )
    return found


def _read_own(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest is None or manifest.own is None or not NAME_PATTERN.fullmatch(folder.name):
        raise InputError(
            f"{folder} is a prepared folder, but none of own images; give the folder of images itself, or run "
            f"s2a-bench sweep with its suite."
        )
    return manifest


def _prepare_source(request: FinetuneRequest, source: Path, stage: Path, progress: Progress) -> PreparedData:
    from s2a_bench.data.own.options import OwnOptions
    from s2a_bench.data.own.prepare import prepare_own

    if source.is_dir() and source.resolve() in (request.output.resolve(), *request.output.resolve().parents):
        raise InputError(
            f"Output folder {request.output} lies in the folder of images {source}; give another --output."
        )
    name, root = dataset_name(source), request.output / "data"
    given = {argument: getattr(request, argument) for argument in PREPARATION}
    options = OwnOptions(**given, seed=request.seed, in_place=True)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        known = json.loads(_stamp_path(root, name).read_text(encoding="utf-8"))
        manifest = _read_own(root / name)
        if known["stamp"] == _stamp(source, options, manifest, root / name):
            return PreparedData(name, root, manifest, source, known["stamp"])
    folder = prepare_own(name, source, stage, options, progress)
    manifest = _read_own(folder)
    return PreparedData(name, stage, manifest, source, _stamp(source, options, manifest, folder), staged=True)


def dataset_name(source: Path) -> str:
    """A name for the dataset of a folder or file: its own, as far as names of datasets allow.

    One that is taken by a dataset or suite of the table gets ``own-`` before it.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", _ENDINGS.sub("", source.name)).strip("-._")[:56].rstrip("-._")
    if not name:
        return "images"
    return f"own-{name}" if name.lower() in {taken.lower() for taken in TAKEN_NAMES} else name


def install(data: PreparedData, output: Path) -> PreparedData:
    """Moves a staged standard folder to ``<output>/data``; one that is there already is replaced.

    Only for the process that holds the output folder's lock.
    """
    if not data.staged:
        return data
    root = output / "data"
    make_folder(root)
    target, stamp = root / data.name, _stamp_path(root, data.name)
    stamp.unlink(missing_ok=True)  # until the end nothing says that the folder is that of the source
    if target.exists():
        same = _same(target, data)
        if not same:
            old = root / f".{data.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            data.folder.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    else:
        data.folder.rename(target)
    sync_folder(root)
    write_atomic(stamp, json.dumps({"source": str(data.source), "stamp": data.stamp}) + "\n")
    return dataclasses.replace(data, root=root, staged=False)


def _same(target: Path, data: PreparedData) -> bool:
    """Whether a folder holds what was prepared again: then its cache of decoded images stays."""
    try:
        there = read_manifest(target)
    except InputError:
        return False
    return there is not None and (there.data_id, there.home) == (data.manifest.data_id, data.manifest.home)


def _stamp_path(root: Path, name: str) -> Path:
    return root / f".{name}.source.json"


def _stamp(source: Path, options: Any, manifest: Manifest, folder: Path) -> str:
    """64 hex digits of what a source looks like: options, and name, size and time of every file.

    Besides the source's own files those that the standard folder uses in place: a table's images may lie anywhere.
    """
    digest = hashlib.sha256(json.dumps([str(source), dataclasses.asdict(options)], sort_keys=True).encode())

    def add(path: Path) -> None:
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))

    if source.is_file():
        add(source)
    for base, folders, files in os.walk(source, followlinks=True):
        folders.sort()
        for name in sorted(files):
            with contextlib.suppress(OSError):  # a link that leads nowhere
                add(Path(base, name))
    images = image_root(folder, manifest)
    if images != folder and images != source:
        for path in sorted(manifest.files):
            add(images / path)
    return digest.hexdigest()


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A temporary folder on the output folder's disk, which goes with the block; those of dead processes go too.

    Raises:
        InputError: Nothing can be written there.
    """
    nearest = next(path for path in (output, *output.parents) if path.is_dir())
    for stale in nearest.glob(f".{_plain(output.name)}.*.preparing"):
        process = stale.name.split(".")[-2]
        if process.isdigit() and not process_runs(int(process)):
            shutil.rmtree(stale, ignore_errors=True)
    folder = nearest / f".{_plain(output.name)}.{os.getpid()}.preparing"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise InputError(
            f"Cannot write to {nearest} for output folder {output} ({error.strerror or error}); give another --output."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name)[:80] or "output"

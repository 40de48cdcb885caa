"""Downloads the files of a dataset: resumes them, checks their digests, and renames a file only when it is complete.

<folder>/FILE           complete, and of the digest that the table states
<folder>/.FILE.part     what has arrived of it so far, and a note beside it (see http.py)
<folder>/.FILE.hub/     the same for the Hugging Face hub, in the form of its own library
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import re
import shutil
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s2a_bench.data import http
from s2a_bench.data.http import DISK_FULL, DownloadFailure, describe_error, explain_disk_errors
from s2a_bench.data.table.types import RemoteFile
from s2a_bench.errors import InputError
from s2a_bench.files import locked, move_into_place

if TYPE_CHECKING:
    from s2a_bench.data.verify import Progress

_HUB = re.compile(r"hf://datasets/(?P<repo>[^/]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")
_BLOCK = 1 << 20


def download_files(remotes: Sequence[RemoteFile], folder: Path, progress: Progress | None) -> list[Path]:
    """Downloads the files that ``folder`` lacks; complete files are left alone.

    A file is complete if it has the stated digest; without one, if it has the size that its server states; without
    either, if it is not empty. All files are tried before an error is raised, so that it lists everything that has
    to be done by hand. An interrupted download is resumed. One process downloads into a folder at a time; others
    wait.

    Args:
        remotes: ``http(s)://...``, ``hf://datasets/OWNER/NAME[@REVISION]/PATH`` or ``gdrive://ID``.
        folder: Made where it does not exist. The caller must not hold its lock.
        progress: Called with ``"downloading FILE"`` and ``"checking FILE"`` with bytes done and in all (0: not known).

    Returns:
        The files, in the order of ``remotes``.

    Raises:
        InputError: Files that cannot be downloaded, with name, address and cause of each; or a folder that is not
            writable, or a full disk.
    """
    progress = progress or _ignore_progress
    with explain_disk_errors(folder):
        wanted = [remote for remote in remotes if not _is_complete(remote, folder, progress)]
    if wanted:
        with _hold_folder(folder, progress):
            failures = _download_all(wanted, folder, progress)
            if failures:
                raise _summarise_failures(failures, folder)
    return [folder / remote.file for remote in remotes]


def _ignore_progress(what: str, done: int, total: int) -> None:
    pass


@contextlib.contextmanager
def _hold_folder(folder: Path, progress: Progress) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(locked(folder, wait=False)):
                progress(f"waiting for another download into {folder}", 0, 0)
                stack.enter_context(locked(folder, wait=True))
        yield


def _download_all(
    wanted: Sequence[RemoteFile], folder: Path, progress: Progress
) -> list[tuple[RemoteFile, DownloadFailure]]:
    failures: list[tuple[RemoteFile, DownloadFailure]] = []
    unreachable_hosts: dict[str, DownloadFailure] = {}
    for remote in wanted:
        host = "//".join(urllib.parse.urlsplit(remote.url)[:2])
        try:
            with explain_disk_errors(folder):
                if _is_complete(remote, folder, progress):  # Another process was quicker.
                    continue
            if host in unreachable_hosts:
                failures.append((remote, unreachable_hosts[host]))
            else:
                _download_one(remote, folder, progress)
        except DownloadFailure as failure:
            failures.append((remote, failure))
            if failure.unreachable:
                unreachable_hosts[host] = failure
    return failures


def _download_one(remote: RemoteFile, folder: Path, progress: Progress) -> None:
    scheme = remote.url.partition("://")[0]
    if (folder / remote.file).is_dir():
        raise DownloadFailure("a folder of that name is in its place")
    if scheme in ("http", "https"):
        arrived = _partial_path(remote, folder)
        http.download_file(
            remote.url,
            arrived,
            bool(remote.digest),
            lambda done, total: progress(f"downloading {remote.file}", done, total),
        )
    elif scheme == "hf":
        arrived = _download_from_hub(remote, folder, progress)
    elif scheme == "gdrive":
        arrived = _download_from_drive(remote, folder, progress)
    else:
        raise DownloadFailure(f"addresses of the kind {scheme}:// are not supported")
    with explain_disk_errors(folder):
        fault = _find_fault(arrived, remote, progress)
        if not fault:
            move_into_place(arrived, folder / remote.file)
        http.remove_partial(_partial_path(remote, folder))
        for kind in ("hub", "drive"):
            shutil.rmtree(folder / f".{remote.file}.{kind}", ignore_errors=True)
    if fault:
        raise DownloadFailure(fault)


def _partial_path(remote: RemoteFile, folder: Path) -> Path:
    return folder / f".{remote.file}.part"


def _is_complete(remote: RemoteFile, folder: Path, progress: Progress) -> bool:
    path = folder / remote.file
    if not path.is_file():
        return False
    if remote.digest:
        return _compute_digest(path, remote, progress) == remote.digest.lower()
    size = path.stat().st_size
    stated = 0 if remote.url.startswith("gdrive://") else http.size_on_server(_browser_url(remote))
    return size == (stated or size) and size > 0


def _find_fault(path: Path, remote: RemoteFile, progress: Progress) -> str:
    """The fault of a downloaded file, in words; ``""``: none."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    # Pages to sign in and some pages of errors come as if they were the file.
    page = "a web page instead of the file" if start.startswith((b"<!doctype html", b"<html")) else ""
    if not remote.digest:
        return f"the server sent {page or 'an empty file'}" if page or not path.stat().st_size else ""
    given = _compute_digest(path, remote, progress)
    if given == remote.digest.lower():
        return ""
    return f"the digest of what arrived{f' ({page})' if page else ''} is {given}, expected {remote.digest}"


def _compute_digest(path: Path, remote: RemoteFile, progress: Progress) -> str:
    kind = remote.digest.partition(":")[0].lower()
    digest = hashlib.new(kind, usedforsecurity=False)
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(f"checking {remote.file}", done, total)
    return f"{kind}:{digest.hexdigest()}"


def _download_from_hub(remote: RemoteFile, folder: Path, progress: Progress) -> Path:
    match = _HUB.fullmatch(remote.url)
    if match is None:
        raise DownloadFailure("the address is not of the form hf://datasets/OWNER/NAME/PATH")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    progress(f"downloading {remote.file}", 0, 0)
    try:
        arrived = hf_hub_download(
            match["repo"],
            match["path"],
            repo_type="dataset",
            revision=match["revision"],
            local_dir=folder / f".{remote.file}.hub",
        )
    except Exception as error:  # It has errors of its own and those of the HTTP library it is built on.
        _raise_if_disk_error(error, folder)
        offline = isinstance(error, (LocalEntryNotFoundError, ConnectionError, TimeoutError))
        raise DownloadFailure(
            f"the Hugging Face hub does not give it ({describe_error(error)})", unreachable=offline
        ) from error
    return Path(arrived)


def _download_from_drive(remote: RemoteFile, folder: Path, progress: Progress) -> Path:
    try:
        importlib.import_module("gdown")
    except ImportError as error:
        raise DownloadFailure("Google Drive needs the package gdown (pip install 's2a-bench[data]')") from error
    from torchvision.datasets.utils import download_file_from_google_drive

    progress(f"downloading {remote.file}", 0, 0)
    place = folder / f".{remote.file}.drive"
    try:
        download_file_from_google_drive(remote.url.removeprefix("gdrive://"), place, filename=remote.file)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)  # Nothing would resume it.
        if not isinstance(error, Exception):
            raise
        _raise_if_disk_error(error, folder)
        raise DownloadFailure(f"Google Drive does not give it ({describe_error(error)})") from error
    return place / remote.file


def _raise_if_disk_error(error: Exception, folder: Path) -> None:
    """Raises ``InputError`` if a library's error came from the file system."""
    if isinstance(error, OSError) and error.errno in (*DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS):
        with explain_disk_errors(folder):
            raise error


def _browser_url(remote: RemoteFile) -> str:
    """The address as a browser can open it."""
    if match := _HUB.fullmatch(remote.url):
        path = f"{match['revision'] or 'main'}/{urllib.parse.quote(match['path'])}"
        return f"https://huggingface.co/datasets/{match['repo']}/resolve/{path}"
    if remote.url.startswith("gdrive://"):
        return f"https://drive.google.com/uc?id={remote.url.removeprefix('gdrive://')}"
    return remote.url


def _summarise_failures(failures: Sequence[tuple[RemoteFile, DownloadFailure]], folder: Path) -> InputError:
    lines: list[str] = []
    for remote, failure in failures:
        size = http.expected_size(_partial_path(remote, folder))
        details = ", ".join([f"{size:,} bytes"] * bool(size) + [remote.digest] * bool(remote.digest))
        lines.append(f"  {remote.file}{f' ({details})' if details else ''} from {_browser_url(remote)}: {failure}")
    files = "1 file" if len(failures) == 1 else f"{len(failures)} files"
    return InputError(
        f"{files} could not be downloaded; run again later, or fetch by hand what is listed here, put it into "
        f"{folder} under these names and run again:\n" + "\n".join(lines)
    )

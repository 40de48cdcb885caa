"""Downloads a dataset's files: resumed where they broke off, checked, and never half there under their own name.

<folder>/FILE           complete, and of the digest that the table states
<folder>/.FILE.part     what has arrived of it so far, and a note beside it (see web.py)
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

from s2a_bench.data import http as web
from s2a_bench.data.http import FULL, Failure, disk, reason
from s2a_bench.data.table.types import Remote
from s2a_bench.errors import InputError
from s2a_bench.files import locked, move_into_place

if TYPE_CHECKING:
    from s2a_bench.data.verify import Progress

_HUB = re.compile(r"hf://datasets/(?P<repo>[^/]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")
_BLOCK = 1 << 20


def fetch(remotes: Sequence[Remote], folder: Path, say: Progress | None) -> list[Path]:
    """Downloads what ``folder`` does not hold yet; a file that is there and good is left alone.

    Good is a file of the stated digest. Without one it is a file of the size that its server states, or any file
    that is not empty where no size can be had: it came here complete or was put here by hand. All files are tried
    before anything is raised, so that what remains to be done by hand is known at once. An interrupted download goes
    on where it stopped. One process downloads into a folder at a time; others wait.

    Args:
        remotes: ``http(s)://...``, ``hf://datasets/OWNER/NAME[@REVISION]/PATH`` or ``gdrive://ID``.
        folder: Made where it does not exist. The caller must not hold its lock.
        say: Told ``"downloading FILE"`` and ``"checking FILE"`` with bytes done and in all (0: not known).

    Returns:
        The files, in the order of ``remotes``.

    Raises:
        InputError: Files that cannot be had: names, addresses and what is wrong with each. Or a folder that cannot be
            written, or a full disk.
    """
    tell = say or _silent
    with disk(folder):
        wanted = [remote for remote in remotes if not _good(remote, folder, tell)]
    if wanted:
        with _claimed(folder, tell):
            failures = _fetch_all(wanted, folder, tell)
            if failures:
                raise _summary(failures, folder)
    return [folder / remote.file for remote in remotes]


def _silent(what: str, done: int, total: int) -> None:
    pass


@contextlib.contextmanager
def _claimed(folder: Path, say: Progress) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(locked(folder, wait=False)):
                say(f"waiting for another download into {folder}", 0, 0)
                stack.enter_context(locked(folder, wait=True))
        yield


def _fetch_all(wanted: Sequence[Remote], folder: Path, say: Progress) -> list[tuple[Remote, Failure]]:
    failures: list[tuple[Remote, Failure]] = []
    silent: dict[str, Failure] = {}
    for remote in wanted:
        host = "//".join(urllib.parse.urlsplit(remote.url)[:2])
        try:
            with disk(folder):
                if _good(remote, folder, say):  # Another process was quicker.
                    continue
            if host in silent:
                failures.append((remote, silent[host]))
            else:
                _fetch_one(remote, folder, say)
        except Failure as failure:
            failures.append((remote, failure))
            if failure.silent:
                silent[host] = failure
    return failures


def _fetch_one(remote: Remote, folder: Path, say: Progress) -> None:
    scheme = remote.url.partition("://")[0]
    if (folder / remote.file).is_dir():
        raise Failure("a folder of that name is in its place")
    if scheme in ("http", "https"):
        arrived = _part(remote, folder)
        web.download(
            remote.url, arrived, bool(remote.digest), lambda done, total: say(f"downloading {remote.file}", done, total)
        )
    elif scheme == "hf":
        arrived = _from_hub(remote, folder, say)
    elif scheme == "gdrive":
        arrived = _from_drive(remote, folder, say)
    else:
        raise Failure(f"addresses of the kind {scheme}:// are not supported")
    with disk(folder):
        fault = _fault(arrived, remote, say)
        if not fault:
            move_into_place(arrived, folder / remote.file)
        web.discard(_part(remote, folder))
        for kind in ("hub", "drive"):
            shutil.rmtree(folder / f".{remote.file}.{kind}", ignore_errors=True)
    if fault:
        raise Failure(fault)


def _part(remote: Remote, folder: Path) -> Path:
    return folder / f".{remote.file}.part"


def _good(remote: Remote, folder: Path, say: Progress) -> bool:
    path = folder / remote.file
    if not path.is_file():
        return False
    if remote.digest:
        return _digest(path, remote, say) == remote.digest.lower()
    size = path.stat().st_size
    stated = 0 if remote.url.startswith("gdrive://") else web.stated_size(_page(remote))
    return size == (stated or size) and size > 0


def _fault(path: Path, remote: Remote, say: Progress) -> str:
    """What is wrong with a file that has arrived; ``""``: nothing."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    # Pages to sign in and some pages of errors come as if they were the file.
    page = "a web page instead of the file" if start.startswith((b"<!doctype html", b"<html")) else ""
    if not remote.digest:
        return f"the server sent {page or 'an empty file'}" if page or not path.stat().st_size else ""
    given = _digest(path, remote, say)
    if given == remote.digest.lower():
        return ""
    return f"the digest of what arrived{f' ({page})' if page else ''} is {given}, expected {remote.digest}"


def _digest(path: Path, remote: Remote, say: Progress) -> str:
    kind = remote.digest.partition(":")[0].lower()
    digest = hashlib.new(kind, usedforsecurity=False)
    total, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            say(f"checking {remote.file}", done, total)
    return f"{kind}:{digest.hexdigest()}"


def _from_hub(remote: Remote, folder: Path, say: Progress) -> Path:
    match = _HUB.fullmatch(remote.url)
    if match is None:
        raise Failure("the address is not of the form hf://datasets/OWNER/NAME/PATH")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    say(f"downloading {remote.file}", 0, 0)
    try:
        arrived = hf_hub_download(
            match["repo"],
            match["path"],
            repo_type="dataset",
            revision=match["revision"],
            local_dir=folder / f".{remote.file}.hub",
        )
    except Exception as error:  # It has errors of its own and those of the HTTP library it is built on.
        _raise_disk(error, folder)
        offline = isinstance(error, (LocalEntryNotFoundError, ConnectionError, TimeoutError))
        raise Failure(f"the Hugging Face hub does not give it ({reason(error)})", silent=offline) from error
    return Path(arrived)


def _from_drive(remote: Remote, folder: Path, say: Progress) -> Path:
    try:
        importlib.import_module("gdown")
    except ImportError as error:
        raise Failure("Google Drive needs the package gdown (pip install gdown)") from error
    from torchvision.datasets.utils import download_file_from_google_drive

    say(f"downloading {remote.file}", 0, 0)
    place = folder / f".{remote.file}.drive"
    try:
        download_file_from_google_drive(remote.url.removeprefix("gdrive://"), place, filename=remote.file)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)  # Nothing would resume it.
        if not isinstance(error, Exception):
            raise
        _raise_disk(error, folder)
        raise Failure(f"Google Drive does not give it ({reason(error)})") from error
    return place / remote.file


def _raise_disk(error: Exception, folder: Path) -> None:
    """Raises ``InputError`` where a library's error is one of the file system."""
    if isinstance(error, OSError) and error.errno in (*FULL, errno.EACCES, errno.EPERM, errno.EROFS):
        with disk(folder):
            raise error


def _page(remote: Remote) -> str:
    """An address that a browser can open."""
    if match := _HUB.fullmatch(remote.url):
        path = f"{match['revision'] or 'main'}/{urllib.parse.quote(match['path'])}"
        return f"https://huggingface.co/datasets/{match['repo']}/resolve/{path}"
    if remote.url.startswith("gdrive://"):
        return f"https://drive.google.com/uc?id={remote.url.removeprefix('gdrive://')}"
    return remote.url


def _summary(failures: Sequence[tuple[Remote, Failure]], folder: Path) -> InputError:
    lines: list[str] = []
    for remote, failure in failures:
        size = web.full_size(_part(remote, folder))
        facts = ", ".join([f"{size:,} bytes"] * bool(size) + [remote.digest] * bool(remote.digest))
        lines.append(f"  {remote.file}{f' ({facts})' if facts else ''} from {_page(remote)}: {failure}")
    files = "1 file" if len(failures) == 1 else f"{len(failures)} files"
    return InputError(
        f"{files} could not be downloaded; run again later, or fetch by hand what is listed here, put it into "
        f"{folder} under these names and run again:\n" + "\n".join(lines)
    )

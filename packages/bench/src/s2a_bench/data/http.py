"""Downloads one file over HTTP, resuming with range requests (RFC 9110, section 14) and never mixing two versions.

FILE.part         what has arrived so far
FILE.part.json    URL, the server's ETag or date, full size
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.client
import ipaddress
import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from s2a_bench.errors import InputError

_AGENT = "s2a-bench"
_TIMEOUT = 30.0
_PAUSES = (1.0, 4.0)
"""Seconds between tries; one try more than there are pauses, counted anew whenever the file has grown."""
_PROGRESS_STEP = 1 << 20
_BLOCK = 1 << 18
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNREACHABLE = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH)


class DownloadFailure(Exception):
    """A file could not be downloaded.

    Attributes:
        retryable: Another try may help.
        unreachable: No connection came about, so the host's other files need not be tried.
        status: Of the answer; 0 without one.
        total: Full size that the answer states; 0: none.
    """

    def __init__(
        self, reason: str, *, retryable: bool = False, unreachable: bool = False, status: int = 0, total: int = 0
    ) -> None:
        super().__init__(reason)
        self.retryable, self.unreachable, self.status, self.total = retryable, unreachable, status, total


@dataclasses.dataclass(frozen=True)
class _PartialNote:
    """Where a partial file comes from: ``validator`` goes into If-Range (``""``: none), ``total`` is 0 if unknown."""

    url: str
    validator: str
    total: int


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turns errors of the file system into ``InputError``. Those of the network must not pass through here."""
    try:
        yield
    except OSError as error:
        cause = describe_error(error)
        if error.errno in DISK_FULL:
            raise InputError(
                f"No space is left for the download in {folder} ({cause}); make room and run again, it goes on where "
                "it stopped."
            ) from error
        raise InputError(f"Folder {folder} cannot be used for the download ({cause}); give another folder.") from error


def describe_error(error: object) -> str:
    """The message of an error on one short line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
    return text or type(error).__name__


def download_file(url: str, part: Path, checked: bool, progress: Callable[[int, int], None]) -> None:
    """Downloads what is missing of ``part``, with a few retries.

    Args:
        url: ``http://`` or ``https://``.
        part: In a folder that exists. Stays, with its note, when something goes wrong.
        checked: Whether the caller compares a digest: only then is a part resumed without an ETag or date, and only
            then may the address be ``http://``.
        progress: Called with bytes done and in all (0: not known), in steps of 1 MiB.

    Raises:
        DownloadFailure: The server cannot be reached, refuses, or breaks off again and again.
        InputError: The disk is full or cannot be written.
    """
    reached, tries = _file_size(part), 0
    while True:
        try:
            return _request_once(url, part, checked, progress)
        except DownloadFailure as failure:
            size = _file_size(part)
            tries = 1 if size > reached else tries + 1
            reached = max(reached, size)
            if not failure.retryable or tries > len(_PAUSES):
                raise
            time.sleep(_PAUSES[tries - 1])


def remove_partial(part: Path) -> None:
    """Removes a part and its note."""
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)


def expected_size(part: Path) -> int:
    """Size that a part will have when it is complete; 0: not known."""
    note = _read_note(part)
    return note.total if note is not None else 0


def size_on_server(url: str) -> int:
    """A file's size as its server states it; 0: not known, or not to be believed."""
    with contextlib.suppress(DownloadFailure), _open_url(url, {}, False, "HEAD") as response:
        stated = response.headers.get("Content-Length", "")
        return int(stated) if response.status == 200 and stated.isdigit() else 0
    return 0


def _request_once(url: str, part: Path, checked: bool, progress: Callable[[int, int], None]) -> None:
    """One request: for the whole file, or for what is missing of it."""
    note, start = _read_note(part), _file_size(part)
    # Without the server's mark or a digest nobody would notice if two versions of a file were joined.
    if note is None or note.url != url or not (note.validator or checked) or start > (note.total or start):
        note, start = None, 0
    headers: dict[str, str] = {}
    if note is not None and start:
        if start == note.total:
            return  # It stopped between the last byte and the check.
        headers["Range"] = f"bytes={start}-"
        if note.validator:
            headers["If-Range"] = note.validator
    try:
        with _open_url(url, headers, checked) as response:
            if response.status == 206 and note is not None and start:
                goal = _check_continuation(response, note, start, checked)
            elif response.status == 200:
                start, goal = 0, response.length or 0
                with explain_disk_errors(part.parent):
                    part.write_bytes(b"")
                    note = _PartialNote(url, _validator(response.headers), goal)
                    _note_path(part).write_text(json.dumps(dataclasses.asdict(note)), encoding="utf-8")
            else:
                raise DownloadFailure(f"the server answers {response.status} {response.reason}")
            _check_space(part.parent, goal - start)
            with explain_disk_errors(part.parent), part.open("ab") as file:
                _copy_response(response, file, start, goal, progress)
    except DownloadFailure as failure:
        if failure.status == 416 and start and failure.total == start:
            return
        if failure.status in (206, 416) and start:
            with explain_disk_errors(part.parent):
                remove_partial(part)
            raise DownloadFailure(str(failure), retryable=True) from failure
        raise


def _check_continuation(response: http.client.HTTPResponse, note: _PartialNote, start: int, checked: bool) -> int:
    """Full size of the file that a 206 goes on with at ``start``."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != start:
        raise DownloadFailure("the server sends another part than the one that was asked for", status=206)
    total = 0 if match[3] == "*" else int(match[3])
    mark = _validator(response.headers)
    # A 206 must carry the ETag if the 200 did (RFC 9110, 15.3.7); a date may be left out.
    due = bool(mark) or (note.validator.startswith('"') and not checked)
    if (note.total and total and total != note.total) or (note.validator and due and mark != note.validator):
        raise DownloadFailure("the file changes on its server while it is downloaded", status=206)
    return total or note.total or int(match[2]) + 1


def _copy_response(
    response: http.client.HTTPResponse, file: IO[bytes], start: int, goal: int, progress: Callable[[int, int], None]
) -> None:
    done = told = start
    progress(done, goal)
    while not goal or done < goal:
        try:
            block = response.read1(_BLOCK)  # Not read(): that would lose what came before a connection breaks.
        except (OSError, http.client.HTTPException) as error:
            raise DownloadFailure(
                f"the connection broke off after {done:,} bytes ({describe_error(error)})", retryable=True
            ) from error
        if not block:
            break
        file.write(block)
        done += len(block)
        if done - told >= _PROGRESS_STEP and done != goal:
            progress(done, goal)
            told = done
    if done < goal:
        raise DownloadFailure(f"the connection broke off after {done:,} of {goal:,} bytes", retryable=True)
    if goal and done > goal:
        raise DownloadFailure(f"the server sends more than the {goal:,} bytes it stated", status=206)
    progress(done, goal)


def refuse_unsafe(url: str, checked: bool) -> None:
    """Refuses an address whose answer anyone on the way could change without being noticed.

    Args:
        url: Any address.
        checked: Whether a digest tells if what arrived is right.

    Raises:
        DownloadFailure: It is ``http://``, of another machine, and there is no digest.
    """
    address = urllib.parse.urlsplit(url)
    if address.scheme == "http" and not checked and not _is_this_machine(address.hostname or ""):
        raise DownloadFailure(
            "http:// without a digest is refused, since anyone on the way could change the file unnoticed"
        )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects from the web to the web only, and from https not to http."""

    def __init__(self, checked: bool) -> None:
        self.checked = checked

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:
            fp.close()  # The base class forgets it where the new address cannot be parsed.
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(newurl, code, f"leads to {newurl}, which is not the web", headers, fp)
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme == "http":
            raise urllib.error.HTTPError(newurl, code, f"leads from https to {newurl}", headers, fp)
        try:
            refuse_unsafe(newurl, self.checked)
        except DownloadFailure as failure:
            raise urllib.error.HTTPError(newurl, code, f"leads to {newurl}; {failure}", headers, fp) from failure
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_url(url: str, headers: Mapping[str, str], checked: bool, method: str = "GET") -> http.client.HTTPResponse:
    refuse_unsafe(url, checked)
    request = urllib.request.Request(url, headers={"User-Agent": _AGENT, **headers}, method=method)
    try:
        return urllib.request.build_opener(_Redirects(checked)).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", "").strip())
        raise DownloadFailure(
            f"the server answers {error.code} {describe_error(error.reason)}",
            retryable=error.code in (408, 429) or error.code >= 500,
            status=error.code,
            total=int(total[1]) if total else 0,
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        # A certificate that does not verify is a ValueError, too.
        hopeless = isinstance(cause, (socket.gaierror, http.client.InvalidURL, ValueError))
        raise DownloadFailure(
            f"{urllib.parse.urlsplit(url).netloc} cannot be reached ({describe_error(cause)})",
            retryable=not hopeless and getattr(cause, "errno", None) not in _UNREACHABLE,
            unreachable=isinstance(error, urllib.error.URLError),
        ) from error


def _validator(headers: http.client.HTTPMessage) -> str:
    """Identifies this version of a file in If-Range, where a weak ETag is not allowed (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "").strip()
    return etag if etag.startswith('"') else headers.get("Last-Modified", "").strip()


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> _PartialNote | None:
    try:
        values = json.loads(_note_path(part).read_text(encoding="utf-8"))
        return _PartialNote(str(values["url"]), str(values["validator"]), int(values["total"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _check_space(folder: Path, needed: int) -> None:
    with explain_disk_errors(folder):
        usage = shutil.disk_usage(folder)
    if usage.total and usage.free < needed:  # Some network file systems state nothing but zeros.
        raise InputError(
            f"The download needs {needed:,} bytes more but {folder} has {usage.free:,} free; make room or give another "
            "folder."
        )

"""The images of a request: from its body, below a folder, or from hosts that are allowed."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from s2a_bench.serving.request import Limits, ServeRequest

JSON = "application/json"
RAW = "application/octet-stream"

_CHUNK = 65_536
_LONGEST = 4096
"""Letters of a path."""
_SOURCES = ("base64", "path", "url")


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status.
        sentences: What is wrong with it, each mistake for itself.
    """

    def __init__(self, status: int, *sentences: str) -> None:
        super().__init__(*sentences)
        self.status = status
        self.sentences = sentences


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an image is: one of ``data``, ``path``, ``url``.

    Attributes:
        title: What it is called in an error.
        data: The content of its file.
        path: Below the service's folder of images.
        url: On an allowed host.
    """

    title: str
    data: bytes | None = None
    path: str | None = None
    url: str | None = None


async def read_body(chunks: AsyncIterator[bytes], headers: Mapping[str, str], limit: int) -> bytes:
    """The whole body of a request.

    Args:
        chunks: Of it.
        headers: By lower-case name.
        limit: Bytes at most.

    Raises:
        Refused: It is larger (413), or says that it is.
    """
    sentence = f"The body has more than {limit:,} bytes; send smaller images, or fewer at once."
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise Refused(413, sentence)
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise Refused(413, sentence)
    return bytes(body)


def find_sources(kind: str, body: bytes, most: int) -> list[Source]:
    """The images of a request.

    Args:
        kind: Its content type: ``image/...`` or ``application/octet-stream`` for one image as it is;
            ``application/json`` for ``{"images": [{"base64": ...}, {"path": ...}, {"url": ...}]}``.
        body: Its body.
        most: Images at most.

    Raises:
        Refused: Another content type (415), a body of another form (400), too many images (413).
    """
    kind = kind.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == RAW:
        if not body:
            raise Refused(400, "The body is empty; send the content of an image file.")
        return [Source("of the body", data=body)]
    if kind != JSON:
        given = f"The content type {kind!r}" if kind else "A body without a content type"
        raise Refused(415, f"{given} is not read; send an image as image/jpeg, image/png, ... or {RAW}, or {JSON}.")
    # Parsing holds up all others: what has far too many parts to be right is not parsed.
    if body.count(b"{") > 4 * most + 64 or body.count(b",") > 4 * most + 64:
        raise Refused(413, f"The body has more parts than {most} images need; send {most} images at most.")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON ({str(error).splitlines()[0]}).") from error
    images = found.get("images") if isinstance(found, dict) else None
    if not isinstance(images, list) or not images or len(found) > 1:
        raise Refused(400, 'The body must be {"images": [...]} with at least one image, and nothing else.')
    if len(images) > most:
        raise Refused(413, f"{len(images)} images are too many for one request; send {most} at most.")
    sources, wrong = [], []
    for number, image in enumerate(images):
        try:
            sources.append(_source(number, image))
        except Refused as error:
            wrong += error.sentences
    if wrong:
        raise Refused(400, *wrong)
    return sources


def _source(number: int, image: Any) -> Source:
    title = f"images[{number}]"
    if not isinstance(image, dict) or len(image) != 1 or next(iter(image)) not in _SOURCES:
        raise Refused(400, f'{title} must be one of {{"base64": ...}}, {{"path": ...}}, {{"url": ...}}.')
    kind, value = next(iter(image.items()))
    if not isinstance(value, str) or not value:
        raise Refused(400, f"{title}: {kind} must be a text that is not empty.")
    if kind != "base64":
        return Source(title, path=value) if kind == "path" else Source(title, url=value)
    try:
        return Source(title, data=base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{title} is no base64 ({error}).") from error


def fetch(source: Source, request: ServeRequest) -> bytes:
    """The content of an image file. Blocks.

    Raises:
        Refused: A path or URL that is not allowed (403), or that cannot be read (422).
    """
    if source.path is not None:
        return _read_path(source.title, source.path, request)
    if source.url is not None:
        return _read_url(source.title, source.url, request)
    assert source.data is not None
    return source.data


def _read_path(title: str, path: str, request: ServeRequest) -> bytes:
    root = request.image_root
    if root is None:
        raise Refused(403, f"{title}: images by path are not allowed here (--image-root); send the image itself.")
    if len(path) > _LONGEST:
        raise Refused(403, f"{title}: a path of {len(path):,} letters does not lie in the service's folder of images.")
    try:
        place = Path(root, path).resolve()
    except (OSError, ValueError, RuntimeError):
        place = None
    if place is None or not place.is_relative_to(root):
        raise Refused(403, f"{title}: {path!a} does not lie in the service's folder of images.")
    try:
        if not place.is_file():
            raise Refused(422, f"{title}: there is no file {path!a} in the service's folder of images.")
        with place.open("rb") as file:
            return _read(title, file.read, request.limits)
    except OSError as error:
        raise Refused(422, f"{title}: {path!a} cannot be read ({error.strerror or error}).") from error


def _read_url(title: str, url: str, request: ServeRequest) -> bytes:
    try:
        parts = urllib.parse.urlsplit(url)
        allowed = parts.scheme in ("http", "https") and parts.netloc.lower() in request.url_hosts
    except ValueError:
        allowed = False
    if not allowed:
        hosts = ", ".join(request.url_hosts)
        known = f"only of {hosts}" if hosts else "not allowed here (--url-hosts); send the image itself"
        raise Refused(403, f"{title}: images by URL are {known}.")
    shown = ascii(url[:200])
    try:
        with _OPENER.open(url, timeout=request.limits.seconds) as answer:
            data = _read(title, answer.read1, request.limits)
            if answer.length:  # what it promised and did not send
                raise Refused(422, f"{title}: {shown} ended {answer.length:,} bytes too early.")
            return data
    except urllib.error.HTTPError as error:
        error.close()
        moved = "; redirects are not followed" if 300 <= error.code < 400 else ""
        raise Refused(422, f"{title}: {shown} cannot be read (HTTP status {error.code}{moved}).") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise Refused(422, f"{title}: {shown} cannot be read ({ascii(str(reason))[1:-1]}).") from error


def _read(title: str, read: Callable[[int], bytes], limits: Limits) -> bytes:
    data, until = bytearray(), time.monotonic() + limits.seconds
    while chunk := read(_CHUNK):
        data += chunk
        if len(data) > limits.body_bytes:
            raise Refused(422, f"{title} has more than {limits.body_bytes:,} bytes; make it smaller first.")
        if time.monotonic() > until:
            raise Refused(422, f"{title} did not come within {limits.seconds:g} seconds.")
    return bytes(data)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An allowed host must not send us to another one."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


# Without the environment's proxies: the host that was allowed is the one that is asked.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

"""A web server that misbehaves as it is told, for tests of downloads."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s2a_bench.data.download import download_files
from s2a_bench.data.table.types import RemoteFile
from s2a_bench.errors import InputError

DATA = random.Random(0).randbytes(200_000)
OTHER = random.Random(1).randbytes(len(DATA))


@dataclasses.dataclass
class Answer:
    """How the server answers one request. The defaults are those of a good server."""

    data: bytes = dataclasses.field(default=DATA, repr=False)
    status: int = 0
    drop: int | None = None  # Closes the connection after so many bytes of the body.
    reset: bool = False  # Closes it the hard way.
    ranges: bool = True
    if_range: bool = True  # Whether it heeds If-Range.
    shift: int = 0  # By which a range begins too late.
    etag: str = '"one"'
    modified: str = ""
    location: str = ""
    length: int | None = None  # What it states.
    kind: str = "length"  # "close": no length; "chunked".
    pause: float = 0.0


@dataclasses.dataclass
class Site:
    """A server; ``answers[path]`` are given in turn, the last one for good."""

    port: int = 0
    answers: dict[str, list[Answer]] = dataclasses.field(default_factory=dict, init=False)
    log: list[dict[str, Any]] = dataclasses.field(default_factory=list, init=False)

    def remote(self, path: str = "f.zip", digest: str | None = None, *answers: Answer) -> RemoteFile:
        self.answers[f"/{path}"] = list(answers) or [Answer()]
        return RemoteFile(f"http://127.0.0.1:{self.port}/{path}", path, md5(DATA) if digest is None else digest)

    @property
    def ranges(self) -> list[str | None]:
        return [each["range"] for each in self.log]

    @property
    def statuses(self) -> list[int]:
        return [each["status"] for each in self.log]


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def handler(site: Site) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            queue = site.answers.get(self.path, [Answer(status=404)])
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            wanted = self.headers.get("Range")
            mark = self.headers.get("If-Range")
            current = mark in (None, answer.etag, answer.modified) or not answer.if_range
            start, status = 0, answer.status or 200
            if wanted and answer.ranges and current and not answer.status:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                status = 206 if start < len(answer.data) else 416
            site.log.append(
                {
                    "method": self.command,
                    "range": wanted,
                    "if_range": mark,
                    "status": status,
                    "agent": self.headers["User-Agent"],
                }
            )
            time.sleep(answer.pause)
            self.send_response(status)
            body = answer.data[start + answer.shift * (status == 206) :]
            if status == 206:
                last = len(answer.data) - 1
                self.send_header("Content-Range", f"bytes {start + answer.shift}-{last}/{len(answer.data)}")
            if status == 416:
                self.send_header("Content-Range", f"bytes */{len(answer.data)}")
            if status not in (200, 206):
                body = b"no such luck"
            for name, value in (
                ("ETag", answer.etag),
                ("Last-Modified", answer.modified),
                ("Location", answer.location),
            ):
                if value:
                    self.send_header(name, value)
            if answer.kind == "length":
                self.send_header("Content-Length", str(len(body) if answer.length is None else answer.length))
            if answer.kind == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.command == "HEAD":
                return
            sent = body[: answer.drop]
            with contextlib.suppress(ConnectionError):
                if answer.kind == "chunked":
                    for i in range(0, len(sent), 30_000):
                        piece = sent[i : i + 30_000]
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    if len(sent) == len(body):
                        self.wfile.write(b"0\r\n\r\n")
                else:
                    self.wfile.write(sent)
            if answer.reset:
                time.sleep(0.05)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    return Handler


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextlib.contextmanager
def serving() -> Iterator[Site]:
    site = Site()
    server = Server(("127.0.0.1", 0), handler(site))
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(*args: Any) -> str:
    with pytest.raises(InputError) as caught:
        download_files(*args)
    return str(caught.value)


def closed_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]

"""Downloads against a server that misbehaves: what is under a final name is always whole and always the right file."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.server
import itertools
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s2a_bench import web
from s2a_bench.dataset_types import Remote
from s2a_bench.download import fetch
from s2a_bench.errors import InputError
from s2a_bench.layout import locked

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

    def remote(self, path: str = "f.zip", digest: str | None = None, *answers: Answer) -> Remote:
        self.answers[f"/{path}"] = list(answers) or [Answer()]
        return Remote(f"http://127.0.0.1:{self.port}/{path}", path, md5(DATA) if digest is None else digest)

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


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as each:
        yield each


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(web, "_TIMEOUT", 5.0)
    monkeypatch.setenv("no_proxy", "*")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(*args: Any) -> str:
    with pytest.raises(InputError) as caught:
        fetch(*args)
    return str(caught.value)


def closed_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


# What goes well


def test_files_come_whole_and_in_order_and_leave_nothing_else(site: Site, tmp_path: Path) -> None:
    big = random.Random(2).randbytes(3_500_000)
    remotes = [
        site.remote("b.zip", f"sha256:{hashlib.sha256(big).hexdigest().upper()}", Answer(big)),
        site.remote("a.txt", ""),
        site.remote("with space%20.txt", ""),
    ]
    remotes[2] = dataclasses.replace(remotes[2], url=remotes[2].url.replace(" ", "%20"))
    site.answers["/with%20space%20.txt"] = [Answer(b"x", kind="close")]
    said: list[tuple[str, int, int]] = []
    folder = tmp_path / "new" / "folder"
    assert fetch(remotes, folder, lambda *each: said.append(each)) == [folder / remote.file for remote in remotes]
    assert [path.read_bytes() for path in (folder / remote.file for remote in remotes)] == [big, DATA, b"x"]
    assert left(folder) == sorted(remote.file for remote in remotes)
    assert {each["agent"] for each in site.log} == {"s2a-bench"}
    steps = [done for what, done, total in said if what == "downloading b.zip" and total == len(big)]
    assert steps[0] == 0 and steps[-1] == len(big) and len(steps) == 5
    assert all(after - before >= 1 << 20 for before, after in itertools.pairwise(steps[:-1]))
    assert ("checking b.zip", len(big), len(big)) in said


def test_a_good_file_is_not_asked_for(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.zip").write_bytes(DATA)
    assert fetch([site.remote()], tmp_path, None) == [tmp_path / "f.zip"]
    assert site.log == []


def test_a_good_file_needs_no_lock_and_no_right_to_write(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f.zip").write_bytes(DATA)
    with locked(tmp_path, wait=False):
        fetch([site.remote()], tmp_path, None)
    if os.geteuid():
        tmp_path.chmod(0o500)
        fetch([site.remote()], tmp_path, None)


def test_without_a_digest_the_size_decides(site: Site, tmp_path: Path) -> None:
    remote = site.remote(digest="")
    fetch([remote], tmp_path, None)
    fetch([remote], tmp_path, None)
    assert [each["method"] for each in site.log] == ["GET", "HEAD"]
    (tmp_path / "f.zip").write_bytes(DATA[:-1])
    fetch([remote], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == DATA


@pytest.mark.parametrize("answer", [Answer(status=404), Answer(status=405), Answer(kind="close"), None])
def test_a_file_put_there_by_hand_is_taken_where_no_size_can_be_had(
    site: Site, tmp_path: Path, answer: Answer | None
) -> None:
    (tmp_path / "f.zip").write_bytes(b"by hand")
    remote = (
        Remote(f"http://127.0.0.1:{closed_port()}/f.zip", "f.zip")
        if answer is None
        else site.remote("f.zip", "", answer)
    )
    fetch([remote, Remote("gdrive://x", "f.zip")], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == b"by hand"
    assert [each["method"] for each in site.log] == ["HEAD"] * (answer is not None)


def test_a_wrong_file_is_replaced_but_not_before_a_right_one_is_there(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.zip").write_bytes(b"old")
    remote = site.remote("f.zip", None, Answer(status=404), Answer())
    failing([remote], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == b"old"
    fetch([remote], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == DATA


# Going on where it stopped


@pytest.mark.parametrize("answer", [Answer(drop=70_000), Answer(drop=70_000, reset=True)], ids=["closed", "reset"])
def test_a_broken_connection_is_taken_up_where_it_broke(site: Site, tmp_path: Path, answer: Answer) -> None:
    fetch([site.remote("f.zip", None, answer, Answer())], tmp_path, None)
    assert site.ranges == [None, "bytes=70000-"] and site.statuses == [200, 206]
    assert site.log[1]["if_range"] == '"one"'
    assert (tmp_path / "f.zip").read_bytes() == DATA and left(tmp_path) == ["f.zip"]


def test_tries_are_counted_anew_while_the_file_grows(site: Site, tmp_path: Path) -> None:
    fetch([site.remote("f.zip", None, *[Answer(drop=20_000)] * 9, Answer())], tmp_path, None)
    assert site.ranges == [None, *(f"bytes={20_000 * i}-" for i in range(1, 10))]
    assert (tmp_path / "f.zip").read_bytes() == DATA


def test_a_later_run_goes_on_with_the_part(site: Site, tmp_path: Path) -> None:
    dead = [Answer(drop=50_000), Answer(status=503), Answer(status=503)]
    remote = site.remote("f.zip", None, *dead, Answer())
    assert "200,000 bytes, md5:" in failing([remote], tmp_path, None)
    assert left(tmp_path) == [".f.zip.part", ".f.zip.part.json"]
    assert (tmp_path / ".f.zip.part").read_bytes() == DATA[:50_000]
    fetch([remote], tmp_path, None)
    assert site.ranges == [None, *["bytes=50000-"] * 3]
    assert (tmp_path / "f.zip").read_bytes() == DATA and left(tmp_path) == ["f.zip"]


def test_an_interrupt_leaves_a_part_to_go_on_with(site: Site, tmp_path: Path) -> None:
    big = random.Random(3).randbytes(3 << 20)
    remote = site.remote("f.zip", md5(big), Answer(big))

    def interrupt(what: str, done: int, total: int) -> None:
        if done > 1 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch([remote], tmp_path, interrupt)
    size = (tmp_path / ".f.zip.part").stat().st_size
    assert 1 << 20 < size < 3 << 20 and not (tmp_path / "f.zip").exists()
    fetch([remote], tmp_path, None)
    assert site.ranges == [None, f"bytes={size}-"]
    assert (tmp_path / "f.zip").read_bytes() == big


def test_a_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    fetch([site.remote("f.zip", None, Answer(drop=70_000), Answer(ranges=False))], tmp_path, None)
    assert site.statuses == [200, 200]
    assert (tmp_path / "f.zip").read_bytes() == DATA


def test_an_etag_that_is_left_out_counts_as_another_unless_a_digest_is_known(site: Site, tmp_path: Path) -> None:
    for name, digest, changed, statuses in (
        ("a", md5(DATA), Answer(etag="", if_range=False), [200, 206]),
        ("b", "", Answer(OTHER, etag="", if_range=False), [200, 206, 200]),
    ):
        site.log.clear()
        fetch([site.remote(name, digest, Answer(drop=70_000), changed)], tmp_path, None)
        assert (tmp_path / name).read_bytes() == changed.data and site.statuses == statuses


@pytest.mark.parametrize("digest", [md5(OTHER), ""])
@pytest.mark.parametrize(
    ("changed", "statuses"),
    [
        (Answer(OTHER, etag='"two"'), [200, 200]),
        (Answer(OTHER, etag='"two"', if_range=False), [200, 206, 200]),
        (Answer(OTHER[:-1] + b"ab", etag="", if_range=False), [200, 206, 200]),
    ],
    ids=["heeds If-Range", "ignores If-Range", "only the size tells"],
)
def test_two_versions_of_a_file_are_never_joined(
    site: Site, tmp_path: Path, changed: Answer, statuses: list[int], digest: str
) -> None:
    expected = md5(changed.data) if digest else ""
    fetch([site.remote("f.zip", expected, Answer(drop=70_000), changed)], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == changed.data
    assert site.statuses == statuses


@pytest.mark.parametrize(
    ("mark", "digest", "if_range", "status"),
    [
        ({"etag": 'W/"weak"', "modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "", "Mon, 01 Jan 2024 00:00:00 GMT", 206),
        ({"etag": 'W/"weak"'}, "", None, 200),
        ({"etag": ""}, "", None, 200),
        ({"etag": ""}, md5(DATA), None, 206),
    ],
)
def test_a_part_is_resumed_only_if_a_change_would_be_noticed(
    site: Site, tmp_path: Path, mark: dict[str, Any], digest: str, if_range: str | None, status: int
) -> None:
    fetch([site.remote("f.zip", digest, Answer(drop=70_000, **mark), Answer(**mark))], tmp_path, None)
    assert site.log[1]["if_range"] == if_range and site.statuses == [200, status]
    assert (tmp_path / "f.zip").read_bytes() == DATA


def test_a_range_that_is_not_the_one_asked_for_is_not_appended(site: Site, tmp_path: Path) -> None:
    fetch([site.remote("f.zip", None, Answer(drop=70_000), Answer(shift=1), Answer())], tmp_path, None)
    assert site.ranges == [None, "bytes=70000-", None]
    assert (tmp_path / "f.zip").read_bytes() == DATA


@pytest.mark.parametrize(("size", "total", "ranges"), [(200_000, 200_000, []), (200_000, 0, ["bytes=200000-"])])
def test_a_part_that_is_complete_is_taken(
    site: Site, tmp_path: Path, size: int, total: int, ranges: list[str | None]
) -> None:
    remote = site.remote(digest="")
    (tmp_path / ".f.zip.part").write_bytes(DATA[:size])
    (tmp_path / ".f.zip.part.json").write_text(json.dumps({"url": remote.url, "validator": '"one"', "total": total}))
    fetch([remote], tmp_path, None)
    assert site.ranges == ranges and (tmp_path / "f.zip").read_bytes() == DATA


@pytest.mark.parametrize(
    ("note", "ranges"),
    [
        ({"url": "", "validator": '"one"', "total": 0}, ["bytes=300000-", None]),
        ({"url": "", "validator": '"one"', "total": 200_000}, [None]),
        ({"url": "http://elsewhere/f.zip", "validator": '"one"', "total": 0}, [None]),
        ({"url": ""}, [None]),
        ([], [None]),
        (None, [None]),
    ],
    ids=["too long", "longer than the note says", "of another address", "half a note", "no note", "broken note"],
)
def test_a_part_that_does_not_fit_is_dropped(site: Site, tmp_path: Path, note: Any, ranges: list[str | None]) -> None:
    remote = site.remote()
    if isinstance(note, dict) and not note["url"]:
        note["url"] = remote.url
    (tmp_path / ".f.zip.part").write_bytes(b"x" * 300_000)
    (tmp_path / ".f.zip.part.json").write_text("{" if note is None else json.dumps(note))
    fetch([remote], tmp_path, None)
    assert site.ranges == ranges and (tmp_path / "f.zip").read_bytes() == DATA


def test_a_body_in_chunks_that_ends_early_is_not_the_file(site: Site, tmp_path: Path) -> None:
    fetch([site.remote("f.zip", "", Answer(drop=70_000, kind="chunked"), Answer(kind="chunked"))], tmp_path, None)
    assert site.ranges == [None, "bytes=70000-"]
    assert (tmp_path / "f.zip").read_bytes() == DATA


def drawn(other: bool, **how: Any) -> Answer:
    """An answer from what hypothesis draws, which must not hold the content: it prints it."""
    return Answer(OTHER if other else DATA, **how)


ANSWERS = st.fixed_dictionaries(
    {
        "other": st.sampled_from([False, False, True]),
        "status": st.sampled_from([0, 0, 0, 500, 404]),
        "drop": st.sampled_from([None, 1, 30_000, 199_999]),
        "ranges": st.booleans(),
        "if_range": st.booleans(),
        "shift": st.sampled_from([0, 0, 1]),
        "etag": st.sampled_from(["", '"one"', '"two"', 'W/"one"']),
        "length": st.sampled_from([None, None, 0, 100_000]),
        "kind": st.sampled_from(["length", "length", "close", "chunked"]),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(ANSWERS, max_size=6))
def test_whatever_the_server_does_the_final_name_holds_the_right_file_or_nothing(
    site: Site, answers: list[dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        remote = site.remote("f.zip", None, *(drawn(**each) for each in answers), Answer())
        for _ in range(len(answers) + 2):
            with contextlib.suppress(InputError):
                fetch([remote], Path(name), None)
            assert not (Path(name) / "f.zip").exists() or (Path(name) / "f.zip").read_bytes() == DATA
        assert left(Path(name)) == ["f.zip"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(ANSWERS, max_size=6), marks=st.sampled_from([('"one"', '"two"'), ("", '"two"'), ("", "")]))
def test_without_a_digest_honest_marks_and_lengths_suffice(
    site: Site, answers: list[dict[str, Any]], marks: tuple[str, str]
) -> None:
    honest = [
        dataclasses.replace(each, etag=marks[each.data == OTHER], length=None, kind="length")
        for each in [*(drawn(**each) for each in answers), Answer()]
    ]
    with tempfile.TemporaryDirectory() as name:
        remote = site.remote("f.zip", "", *honest)
        for _ in range(len(answers) + 2):
            with contextlib.suppress(InputError):
                fetch([remote], Path(name), None)
        arrived = (Path(name) / "f.zip").read_bytes()
        assert [arrived == DATA, arrived == OTHER].count(True) == 1


# What goes wrong


def test_what_cannot_be_had_is_listed_once_and_the_rest_is_fetched(site: Site, tmp_path: Path) -> None:
    gone = [site.remote(name, digest, Answer(status=404)) for name, digest in (("a.zip", ""), ("c.zip", "md5:00"))]
    said = failing([gone[0], site.remote("b.zip"), gone[1]], tmp_path, None)
    assert said.startswith("2 files could not be downloaded") and "b.zip" not in said and str(tmp_path) in said
    assert f"  a.zip from {gone[0].url}: the server answers 404 Not Found" in said
    assert f"  c.zip (md5:00) from {gone[1].url}: the server answers 404 Not Found" in said
    assert site.statuses == [404, 200, 404] and left(tmp_path) == ["b.zip"]


def test_a_passing_fault_of_the_server_is_waited_out(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(web, "_PAUSES", (1.0, 4.0))
    monkeypatch.setattr(web.time, "sleep", lambda each: waits.append(each) if each else None)
    fetch([site.remote("f.zip", None, Answer(status=500), Answer(status=429), Answer())], tmp_path, None)
    assert site.statuses == [500, 429, 200] and waits == [1.0, 4.0]
    assert (tmp_path / "f.zip").read_bytes() == DATA


def test_a_lasting_fault_of_the_server_is_told_after_three_tries(site: Site, tmp_path: Path) -> None:
    assert "the server answers 500" in failing([site.remote("f.zip", None, Answer(status=500))], tmp_path, None)
    assert site.statuses == [500] * 3 and left(tmp_path) == []


@pytest.mark.parametrize(
    "answer",
    [Answer(OTHER), Answer(length=150_000), Answer(drop=0, length=0)],
    ids=["other", "length too short", "empty"],
)
def test_a_wrong_digest_is_told_and_nothing_is_kept(site: Site, tmp_path: Path, answer: Answer) -> None:
    said = failing([site.remote("f.zip", None, answer)], tmp_path, None)
    arrived = answer.data[: answer.length]
    assert f"is {md5(arrived)}, expected {md5(DATA)}" in said
    assert left(tmp_path) == [] and len(site.log) == 1


@pytest.mark.parametrize(("data", "words"), [(b"\n<!DOCTYPE html><p>Sign in", "a web page"), (b"", "an empty file")])
def test_without_a_digest_a_page_or_nothing_is_not_the_file(
    site: Site, tmp_path: Path, data: bytes, words: str
) -> None:
    assert words in failing([site.remote("f.zip", "", Answer(data))], tmp_path, None)
    assert left(tmp_path) == []


def test_a_page_instead_of_the_file_is_called_one(site: Site, tmp_path: Path) -> None:
    said = failing([site.remote("f.zip", None, Answer(b"<html>quota exceeded</html>"))], tmp_path, None)
    assert "a web page instead of the file" in said and md5(DATA) in said


def test_redirects_are_followed_and_resumed(site: Site, tmp_path: Path) -> None:
    remote = site.remote("f.zip", None, Answer(status=302, location="/elsewhere"))
    site.answers["/elsewhere"] = [Answer(drop=70_000), Answer()]
    fetch([remote], tmp_path, None)
    assert site.statuses == [302, 200, 302, 206] and site.ranges[-1] == "bytes=70000-"
    assert (tmp_path / "f.zip").read_bytes() == DATA


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("file:///etc/hostname", "not allowed"),
        ("data:,x", "not allowed"),
        ("ftp://127.0.0.1/f.zip", "leads to ftp://127.0.0.1/f.zip, which is not the web"),
        ("/f.zip", "infinite loop"),
        ("http://[x", "Invalid IPv6 URL"),
    ],
)
def test_redirects_lead_nowhere_but_to_the_web(site: Site, tmp_path: Path, target: str, words: str) -> None:
    said = failing([site.remote("f.zip", "", Answer(status=302, location=target))], tmp_path, None)
    assert "1 file could not be downloaded" in said and words in said and left(tmp_path) == []


def test_a_host_that_cannot_be_reached_is_tried_once_for_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, tried = closed_port(), []
    real = web._open
    monkeypatch.setattr(web, "_open", lambda url, *rest: tried.append(url) or real(url, *rest))
    remotes = [Remote(f"http://127.0.0.1:{port}/{name}", name, "md5:00") for name in ("a", "b")]
    said = failing(remotes, tmp_path, None)
    assert said.count(f"127.0.0.1:{port} cannot be reached (Connection refused)") == 2
    assert tried == [remotes[0].url]
    assert all(remote.url in said for remote in remotes) and left(tmp_path) == []


def test_a_name_that_does_not_resolve_and_an_address_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    remotes = [Remote("https://data.example/f.zip", "f.zip"), Remote("http://a b/", "g"), Remote("ftp://x/h", "h")]
    said = failing(remotes, tmp_path, None)
    assert "data.example cannot be reached (Temporary failure in name resolution)" in said
    assert "  g from http://a b/: " in said and "the kind ftp:// are not supported" in said


def test_a_server_that_says_nothing_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_TIMEOUT", 0.1)
    assert "timed out" in failing([site.remote("f.zip", None, Answer(pause=0.3))], tmp_path, None)
    assert len(site.log) == 3


def test_a_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        said = failing([site.remote()], folder, None)
        assert f"{folder} cannot be used for the download" in said and "give another folder" in said
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert "Permission denied" in failing([site.remote()], tmp_path, None)
    (tmp_path / "f.zip").mkdir()
    assert "a folder of that name is in its place" in failing([site.remote()], tmp_path, None)
    assert site.log == []


def test_a_full_disk_is_told(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".f.zip.part").symlink_to("/dev/full")
    said = failing([site.remote()], tmp_path, None)
    assert "No space is left" in said and str(tmp_path) in said and not (tmp_path / "f.zip").exists()


def test_a_disk_that_is_too_small_is_told_at_once(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(total=10, free=5))
    assert "needs 200,000 bytes more" in failing([site.remote()], tmp_path, None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(total=0, free=0))
    fetch([site.remote()], tmp_path, None)


# Several at once


def test_threads_take_turns_and_the_file_is_sent_once(site: Site, tmp_path: Path) -> None:
    remote = site.remote("f.zip", None, Answer(pause=0.3))
    said: list[str] = []
    threads = [
        threading.Thread(target=fetch, args=([remote], tmp_path, lambda what, done, total: said.append(what)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.statuses == [200] and f"waiting for another download into {tmp_path}" in said
    assert (tmp_path / "f.zip").read_bytes() == DATA and left(tmp_path) == ["f.zip"]


def test_processes_take_turns_and_a_killed_one_is_taken_over_from(site: Site, tmp_path: Path) -> None:
    big = random.Random(4).randbytes(3 << 20)
    remote = site.remote("f.zip", md5(big), Answer(big))
    code = (
        "import sys, os, signal; from pathlib import Path; from s2a_bench.download import fetch, Remote\n"
        "die = lambda what, done, total: os.kill(os.getpid(), signal.SIGKILL) if done > 1 << 20 else None\n"
        "fetch([Remote(*sys.argv[1:4])], Path(sys.argv[4]), die if sys.argv[5] == 'die' else None)"
    )
    command = [sys.executable, "-c", code, remote.url, remote.file, remote.digest, str(tmp_path)]
    assert subprocess.run([*command, "die"], check=False).returncode == -9
    size = (tmp_path / ".f.zip.part").stat().st_size
    assert 0 < size < len(big)
    both = [subprocess.Popen([*command, "live"]) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert site.ranges == [None, f"bytes={size}-"]
    assert (tmp_path / "f.zip").read_bytes() == big and left(tmp_path) == ["f.zip"]


# The hub and Google Drive

HUB = "hf://datasets/owner/name/data/f.zip"


def test_the_hub_is_asked_and_its_file_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def copy(repo_id: str, filename: str, *, repo_type: str, revision: str | None, local_dir: Path) -> str:
        calls.append((repo_id, filename, repo_type, revision))
        target = Path(local_dir) / filename
        target.parent.mkdir(parents=True)
        (Path(local_dir) / ".cache").mkdir()
        target.write_bytes(DATA)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", copy)
    remotes = [Remote(HUB, "f.zip", md5(DATA)), Remote(HUB.replace("name/", "name@v1/"), "g.zip")]
    said: list[str] = []
    fetch(remotes, tmp_path, lambda what, done, total: said.append(what))
    assert calls == [
        ("owner/name", "data/f.zip", "dataset", None),
        ("owner/name", "data/f.zip", "dataset", "v1"),
    ]
    assert left(tmp_path) == ["f.zip", "g.zip"] and "downloading f.zip" in said
    assert {(tmp_path / name).read_bytes() for name in left(tmp_path)} == {DATA}
    fetch(remotes[:1], tmp_path, None)
    assert len(calls) == 2
    said_last = failing([Remote(HUB, "h.zip", md5(OTHER))], tmp_path, None)
    assert f"is {md5(DATA)}, expected {md5(OTHER)}" in said_last and left(tmp_path) == ["f.zip", "g.zip"]


@pytest.mark.parametrize(
    ("error", "words", "calls"),
    [
        (LocalEntryNotFoundError("Cannot find it\n in the cache"), "Cannot find it in the cache", 1),
        (RuntimeError("of some HTTP library"), "of some HTTP library", 2),
        (OSError(errno.ENOSPC, "No space left on device"), "No space is left", 1),
    ],
)
def test_errors_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, calls: int
) -> None:
    count: list[str] = []

    def fail(repo_id: str, filename: str, *, local_dir: Path, **rest: object) -> str:
        count.append(filename)
        local_dir.mkdir(exist_ok=True)
        (local_dir / "half").write_bytes(b"")
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    said = failing([Remote(HUB, "f.zip"), Remote(HUB, "g.zip")], tmp_path, None)
    assert words in said and len(count) == calls
    if not isinstance(error, OSError) or error.errno is None:
        page = "https://huggingface.co/datasets/owner/name/resolve/main/data/f.zip"
        assert f"f.zip from {page}" in said and f"g.zip from {page}" in said
    assert (tmp_path / ".f.zip.hub" / "half").exists()  # Its library goes on from there.


def test_an_address_of_the_hub_that_is_none(tmp_path: Path) -> None:
    assert "hf://datasets/OWNER/NAME/PATH" in failing([Remote("hf://datasets/x", "f")], tmp_path, None)


def test_google_drive_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    said = failing([Remote("gdrive://abc", "f.gz", "md5:00")], tmp_path, None)
    assert "f.gz (md5:00) from https://drive.google.com/uc?id=abc: " in said and "pip install gdown" in said


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (DATA, None, ""),
        (OTHER, None, f"expected {md5(DATA)}"),
        (b"", PermissionError("Too many users have viewed"), "Google Drive does not give it (Too many users"),
        (b"", KeyboardInterrupt(), ""),
        (b"", OSError(errno.EDQUOT, "Disk quota exceeded"), "No space is left"),
        (None, None, "Google Drive does not give it (File not found or corrupted.)"),
    ],
)
def test_google_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, error: BaseException | None, words: str
) -> None:
    def get(*, id: str, output: str, **rest: object) -> None:
        assert id == "abc"
        if data is not None:
            Path(output).write_bytes(data)
        if error is not None:
            raise error

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=get))
    remote = Remote("gdrive://abc", "f.gz", md5(DATA))
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            fetch([remote], tmp_path, None)
    elif words:
        assert words in re.sub(r"\s+", " ", failing([remote], tmp_path, None))
    else:
        fetch([remote], tmp_path, None)
        assert (tmp_path / "f.gz").read_bytes() == DATA
    assert left(tmp_path) == ([] if words or error else ["f.gz"])

"""Downloads that cannot be: one sentence each, the rest is fetched, and nothing wrong is kept."""

from __future__ import annotations

import dataclasses
import http.client
import os
import re
import shutil
import socket
import types
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from bench.web_site import DATA, OTHER, Answer, Site, closed_port, failing, left, md5
from s2a_bench.data import http as web
from s2a_bench.data.download import download_files
from s2a_bench.data.table.rows import TABLE
from s2a_bench.data.table.types import RemoteFile

pytestmark = pytest.mark.usefixtures("quick_web")


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
    download_files([site.remote("f.zip", None, Answer(status=500), Answer(status=429), Answer())], tmp_path, None)
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
    download_files([remote], tmp_path, None)
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


class PlainHttps(urllib.request.HTTPSHandler):
    """``https://`` addresses without encryption, so that the test's server can answer them."""

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(http.client.HTTPConnection, req)


@pytest.mark.parametrize("digest", [None, ""])
@pytest.mark.parametrize("there", [False, True])
def test_https_does_not_fall_back_to_http(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str | None, there: bool
) -> None:
    monkeypatch.setattr(urllib.request, "HTTPSHandler", PlainHttps)
    site.answers["/f.zip"] = [Answer()]
    remote = site.remote("start", digest, Answer(status=302, location=f"http://127.0.0.1:{site.port}/f.zip"))
    remote = dataclasses.replace(remote, url=remote.url.replace("http://", "https://"))
    if there:  # what lies there by hand is asked about, but never replaced by what comes over http
        (tmp_path / "start").write_bytes(DATA if digest is None else b"by hand")
        download_files([remote], tmp_path, None)
        return
    said = failing([remote], tmp_path, None)
    assert f"leads from https to http://127.0.0.1:{site.port}/f.zip" in said and left(tmp_path) == []
    assert site.statuses == [302]


def test_http_without_a_digest_is_refused_before_anything_is_asked(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail(f"asked {a}"))
    said = failing([RemoteFile("http://example.org/f.zip", "f.zip")], tmp_path, None)
    assert "http:// without a digest is refused" in said and left(tmp_path) == []
    (tmp_path / "f.zip").write_bytes(b"by hand")
    assert download_files([RemoteFile("http://example.org/f.zip", "f.zip")], tmp_path, None)


def test_a_redirect_to_http_of_another_machine_needs_a_digest(site: Site, tmp_path: Path) -> None:
    moved = Answer(status=302, location="http://example.invalid/f.zip")
    assert "http:// without a digest is refused" in failing([site.remote("f.zip", "", moved)], tmp_path, None)
    assert site.statuses == [302] and left(tmp_path) == []


def test_every_download_of_the_table_has_a_digest_of_the_right_form() -> None:
    remotes = [remote for dataset in TABLE for remote in dataset.remotes]
    assert len(remotes) == 67
    for remote in remotes:
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", remote.digest), remote
    by_address = {(remote.url, remote.digest) for remote in remotes}
    assert len(by_address) == len({url for url, _ in by_address}), "one address, two digests"
    assert len({digest for _, digest in by_address}) == len(by_address), "two addresses, one digest"


def test_a_host_that_cannot_be_reached_is_tried_once_for_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, tried = closed_port(), []
    real = web._open_url
    monkeypatch.setattr(web, "_open_url", lambda url, *rest: tried.append(url) or real(url, *rest))
    remotes = [RemoteFile(f"http://127.0.0.1:{port}/{name}", name, "md5:00") for name in ("a", "b")]
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
    remotes = [
        RemoteFile("https://data.example/f.zip", "f.zip"),
        RemoteFile("http://a b/", "g"),
        RemoteFile("ftp://x/h", "h"),
    ]
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
    download_files([site.remote()], tmp_path, None)

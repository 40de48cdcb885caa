"""The images of a request: any body is images or a refusal, and no path or URL leads where it may not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import gc
import json
import os
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from bench.web_site import DATA, Answer, closed_port, serving
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.serving.body import Refused, Source, fetch, find_sources, read_body
from s2a_bench.serving.request import Limits, ServeRequest

NAMED = st.builds(lambda kind, text: {kind: text}, st.sampled_from(["path", "url"]), st.text(min_size=1))
IMAGES = NAMED | st.binary(min_size=1).map(lambda data: {"base64": base64.b64encode(data).decode()})
LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text()
KEYS = st.sampled_from(["images", "base64", "path", "url"]) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))
NO_BODIES = [b"", b"{", b"[]", b"null", b"7", b'"images"', b"{}", b'{"images": []}', b'{"images": {}}', b"\xff\xfe\xfd"]
NO_BODIES += [b'{"images": null}', b'{"images": [{"path": "a"}], "top": 5}', b'{"Images": [{"path": "a"}]}', b"\0" * 8]
NO_BODIES += [b"[" * 100_000, b'{"a":' * 100_000, b'{"images": %s}' % (b"9" * 5000), b"\xef\xbb\xbf", b"{'images': []}"]
NO_IMAGES = [None, 7, "a.jpg", [], {}, {"path": ""}, {"path": None}, {"url": 7}, {"base64": ["YQ=="]}, {"file": "a"}]
NO_IMAGES += [{"path": "a", "url": "b"}, {"base64": "YQ"}, {"base64": "YQ==\n"}, {"base64": "ä"}, {"base64": "="}]
NO_IMAGES += [{"base64": "Y-_="}, {"base64": "\ud800"}, {"path": {"path": "a"}}, {"Path": "a"}, [{"path": "a"}]]
OUTSIDE = "../secret sub/../../secret .. / /etc/passwd //etc/passwd out up/secret up/root2/secret ../root2/secret round"
ELSEWHERE = """
http://{0}@{1}/ http://a:b@{0}/ http://{1}/?{0} http://{1}#{0} http://{1}/{0} http://{0}.x/ http://{0}0/ http://{0}:80/
http://{1}\\@{0}/ http://{0}\\@{1}/ http://{0}%2f@{1}/ http:///{0}/ http:{0} //{0}/ {0} ftp://{0}/ file://{0}/etc/passwd
file:///etc/passwd data:,a http://[{0}]/ http://[::1 http://127.0.0.1/ http://localhost:{2}/ http://0x7f.1:{2}/
http://2130706433:{2}/ <http://{1}/> URL:http://{1}/
""".split()
CONTROLS = ["http://{1}\n@{0}/", "http://{0}\t@{1}/", "\0http://{1}/", " http://{1}/"]
GARBAGE = [b"garbage\r\n\r\n", b"HTTP/1.1 99999 x\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n"]
GARBAGE += [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"x" * 70_000, b"HTTP/1.1 200 " + b"x" * 70_000]
GARBAGE += [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + rest for rest in (b"5\r\nabc", b"zz\r\n", b"")]


def refusal(function: Any, *values: Any) -> Refused:
    """How it is refused, in sentences that can be sent."""
    with pytest.raises(Refused) as caught:
        function(*values)
    assert caught.value.sentences and "".join(caught.value.sentences).encode()
    return caught.value


def status(function: Any, *values: Any) -> int:
    return refusal(function, *values).status


def read(chunks: list[bytes], limit: int, **headers: str) -> tuple[bytes, int]:
    """The body, and how many of its chunks were waited for."""
    taken = []

    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            taken.append(chunk)
            yield chunk

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(read_body(stream(), named, limit)), len(taken)


@given(st.lists(st.binary()), st.integers(0, 30))
def test_a_body_is_its_chunks_up_to_the_limit(chunks, limit):
    whole = b"".join(chunks)
    if len(whole) > limit:
        assert status(read, chunks, limit) == 413
    else:
        assert read(chunks, limit) == (whole, len(chunks))


def test_a_body_that_is_too_large_is_not_read_to_its_end():
    seen = []

    async def stream() -> AsyncIterator[bytes]:
        while True:
            seen.append(1)
            yield b"x"

    assert status(asyncio.run, read_body(stream(), {}, 10)) == 413 and len(seen) == 11
    for length in ("11", "9" * 4000, "9" * 5000):
        assert status(asyncio.run, read_body(stream(), {"content-length": length}, 10)) == 413 and len(seen) == 11


@pytest.mark.parametrize("length", ["", "0", "1", "-99", "1e9", "many", "+99", " 99", "0x99", "²"])
def test_what_a_body_says_of_its_length_is_not_believed(length):
    assert read([b"a", b"b"], 2, content_length=length) == (b"ab", 2)
    assert status(lambda: read([b"a", b"bc"], 2, content_length=length)) == 413


@pytest.mark.parametrize("kind", ["image/jpeg", "image/x-odd", "IMAGE/PNG ", "application/octet-stream;q=1"])
def test_one_image_is_its_bytes(kind):
    assert find_sources(kind, b"\0{", 1) == [Source("of the body", data=b"\0{")]
    assert status(find_sources, kind, b"", 1) == 400


@pytest.mark.parametrize("kind", ["", "image", "text/plain", "application/json2", "text/x; a=image/png", ";", "\xe4/b"])
def test_other_content_types_are_refused(kind):
    assert status(find_sources, kind, b'{"images": [{"path": "a"}]}', 9) == 415


@given(st.lists(IMAGES, min_size=1, max_size=8), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_json_names_its_images_in_order(images, encoding):
    body = json.dumps({"images": images}).encode(encoding)
    values: list[Any] = [{"data": base64.b64decode(each["base64"])} if "base64" in each else each for each in images]
    expected = [Source(f"images[{number}]", **value) for number, value in enumerate(values)]
    assert find_sources("application/json; charset=utf-8", body, len(images)) == expected
    assert status(find_sources, "application/json", body, len(images) - 1) == 413


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()), st.integers(1, 3))
def test_any_bytes_are_images_or_a_refusal(body, most):
    try:
        found = find_sources("application/json", body, most)
    except Refused as error:
        assert error.status in (400, 413) and "".join(error.sentences).encode()
    else:
        assert 1 <= len(found) <= most


@given(st.lists(VALUES | IMAGES, min_size=1, max_size=5))
def test_any_list_is_images_or_a_refusal_of_each_that_is_none(images):
    wrong = []
    for number, image in enumerate(images):
        try:
            find_sources("application/json", json.dumps({"images": [image]}).encode(), 9)
        except Refused:
            wrong.append(f"images[{number}]")
    body = json.dumps({"images": images}).encode()
    if wrong:
        found = refusal(find_sources, "application/json", body, 9)
        assert (found.status, [text.split()[0].strip(":") for text in found.sentences]) == (400, wrong)
    else:
        assert len(find_sources("application/json", body, 9)) == len(images)


@pytest.mark.parametrize("body", NO_BODIES)
def test_a_body_of_another_form_is_refused(body):
    assert status(find_sources, "application/json", body, 9) in (400, 413)


@pytest.mark.parametrize("image", NO_IMAGES)
def test_an_image_of_another_form_is_refused(image):
    body = json.dumps({"images": [{"path": "a"}, image, {"url": "b"}, image]}).encode()
    found = refusal(find_sources, "application/json", body, 9)
    assert (found.status, len(found.sentences)) == (400, 2)
    assert [f"images[{i}]" in text for i, text in zip((1, 3), found.sentences, strict=True)] == [True, True]


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> ServeRequest:
    """A folder of images with ways out of it."""
    top = tmp_path_factory.mktemp("top").resolve()
    root, limit = top / "root", 1000
    for path in ("secret", "root2/secret", "root/a.jpg", "root/sub/b.jpg", "root/..c.jpg", "root/~"):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(path.encode())
    (root / "none").write_bytes(b"")
    (root / "most").write_bytes(b"x" * limit)
    (root / "more").write_bytes(b"x" * (limit + 1))
    os.mkfifo(root / "pipe")
    for name, target in {"out": "../secret", "up": "..", "in": "sub/b.jpg", "lost": "no", "round": "round"}.items():
        (root / name).symlink_to(target)
    return ServeRequest((), None, "", image_root=root, limits=Limits(body_bytes=limit, seconds=0.3))


def by_path(service: ServeRequest, path: str) -> bytes:
    return fetch(Source("images[0]", path=path), service)


def by_url(service: ServeRequest, url: str, *hosts: str) -> bytes:
    return fetch(Source("images[0]", url=url), dataclasses.replace(service, url_hosts=hosts))


def test_files_below_the_folder_are_read(service):
    assert fetch(Source("images[0]", data=b"abc"), service) == b"abc"
    assert by_path(service, "a.jpg") == by_path(service, "./sub/../a.jpg") == b"root/a.jpg"
    assert by_path(service, "sub/b.jpg") == by_path(service, "in") == b"root/sub/b.jpg"
    assert by_path(service, str(service.image_root / "a.jpg")) == b"root/a.jpg"
    assert by_path(service, "..c.jpg") == b"root/..c.jpg" and by_path(service, "~") == b"root/~"
    assert by_path(service, "none") == b"" and by_path(service, "most") == b"x" * 1000


@pytest.mark.parametrize("path", [*OUTSIDE.split(), "no/../../secret", "a\0b", "\ud800"])
def test_no_path_leads_out_of_the_folder(service, path):
    assert status(by_path, service, path) == 403


@pytest.mark.parametrize("path", ["no", "sub", ".", "lost", "pipe", "more", "a.jpg/b", "x" * 300, "\udcff", "\n"])
def test_what_is_no_image_file_cannot_be_read(service, path):
    assert status(by_path, service, path) == 422


@given(st.lists(st.sampled_from(["..", ".", "a.jpg", "sub", "up", "root", "root2", "secret", "out", "", "\0", "~"])))
def test_no_path_shows_a_secret(service, parts):
    with contextlib.suppress(Refused):
        assert b"secret" not in by_path(service, "/".join(parts))


def test_paths_and_urls_are_refused_unless_they_were_allowed(service):
    assert status(by_path, dataclasses.replace(service, image_root=None), "a.jpg") == 403
    assert status(by_url, service, "http://127.0.0.1/") == 403


def test_an_allowed_host_is_asked(site, service, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    host = f"127.0.0.1:{site.port}"
    site.answers["/a?b=c"] = [Answer(DATA[:1000])]
    assert by_url(service, f"http://{host}/a?b=c", "other", host) == DATA[:1000]
    assert by_url(service, f"HTTP://{host}/a?b=c#d", host) == DATA[:1000]
    assert by_url(service, f"http://LOCALHOST:{site.port}/a?b=c", f"localhost:{site.port}") == DATA[:1000]


@pytest.mark.parametrize("url", [*ELSEWHERE, *CONTROLS])
def test_no_other_host_is_asked(site, service, url):
    with serving() as evil:
        names = (f"127.0.0.1:{site.port}", f"127.0.0.1:{evil.port}", site.port)
        assert status(by_url, service, url.format(*names), names[0]) == 403
    assert site.log == evil.log == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(site, service, code):
    with serving() as evil:
        site.answers["/a"] = [Answer(status=code, location=f"http://127.0.0.1:{evil.port}/b")]
        assert status(by_url, service, f"http://127.0.0.1:{site.port}/a", f"127.0.0.1:{site.port}") == 422
    assert (site.statuses, evil.log) == ([code], [])


@contextlib.contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A server that says what it likes to whoever asks it first."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def answer_one() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as client:
                client.recv(10_000)
                client.sendall(answer)

        thread = threading.Thread(target=answer_one)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_an_image_of_a_url_has_the_same_limit(site, service):
    host = f"127.0.0.1:{site.port}"
    for kind in ("length", "close"):
        site.answers = {"/most": [Answer(DATA[:1000], kind=kind)], "/more": [Answer(DATA[:1001], kind=kind)]}
        assert by_url(service, f"http://{host}/most", host) == DATA[:1000]
        assert "1,000 bytes" in refusal(by_url, service, f"http://{host}/more", host).sentences[0]


def test_a_server_that_does_not_answer_is_a_refusal(site, service):
    site.answers["/slow"], host = [Answer(pause=1.0)], f"127.0.0.1:{site.port}"
    for url in (f"http://127.0.0.1:{closed_port()}/", "http://../", f"http://{host}/slow", f"https://{host}/"):
        assert status(by_url, service, url, url.split("/")[2]) == 422
    with saying(b"") as host:
        assert status(by_url, service, f"http://{host}/", host) == 422


def test_an_answer_that_is_refused_is_closed(site, service):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert status(by_url, service, f"http://127.0.0.1:{site.port}/gone", f"127.0.0.1:{site.port}") == 422
        gc.collect()
    assert seen == []


@pytest.mark.parametrize("answer", GARBAGE)
def test_an_answer_that_is_none_is_a_refusal(service, answer):
    with saying(answer) as host:
        assert status(by_url, service, f"http://{host}/", host) == 422


@pytest.mark.parametrize("path", ["a b", "\x7f", "a\nb", "a\tb", "\0", "é", "\ud800", "a?\r\nHost: b"])
def test_a_url_with_odd_letters_is_a_refusal(site, service, path):
    host = f"127.0.0.1:{site.port}"
    assert status(by_url, service, f"http://{host}/{path}", host) in (403, 422)


def test_a_path_of_many_parts_costs_little(service, monkeypatch):
    looks, look = [], os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **options: looks.append(1) or look(path, **options))
    assert status(by_path, service, "x/" * 50_000) in (400, 403, 422)
    assert len(looks) < 10_000

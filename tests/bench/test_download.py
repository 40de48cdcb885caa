"""Downloads against a server that misbehaves: what is under a final name is always whole and always the right file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from bench.web_site import DATA, OTHER, Answer, Site, closed_port, failing, left, md5
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s2a_bench.data.download import download_files
from s2a_bench.data.table.types import RemoteFile
from s2a_bench.errors import InputError
from s2a_bench.files import locked

pytestmark = pytest.mark.usefixtures("quick_web")


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
    assert download_files(remotes, folder, lambda *each: said.append(each)) == [
        folder / remote.file for remote in remotes
    ]
    assert [path.read_bytes() for path in (folder / remote.file for remote in remotes)] == [big, DATA, b"x"]
    assert left(folder) == sorted(remote.file for remote in remotes)
    assert {each["agent"] for each in site.log} == {"s2a-bench"}
    steps = [done for what, done, total in said if what == "downloading b.zip" and total == len(big)]
    assert steps[0] == 0 and steps[-1] == len(big) and len(steps) == 5
    assert all(after - before >= 1 << 20 for before, after in itertools.pairwise(steps[:-1]))
    assert ("checking b.zip", len(big), len(big)) in said


def test_a_good_file_is_not_asked_for(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.zip").write_bytes(DATA)
    assert download_files([site.remote()], tmp_path, None) == [tmp_path / "f.zip"]
    assert site.log == []


def test_a_good_file_needs_no_lock_and_no_right_to_write(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f.zip").write_bytes(DATA)
    with locked(tmp_path, wait=False):
        download_files([site.remote()], tmp_path, None)
    if os.geteuid():
        tmp_path.chmod(0o500)
        download_files([site.remote()], tmp_path, None)


def test_without_a_digest_the_size_decides(site: Site, tmp_path: Path) -> None:
    remote = site.remote(digest="")
    download_files([remote], tmp_path, None)
    download_files([remote], tmp_path, None)
    assert [each["method"] for each in site.log] == ["GET", "HEAD"]
    (tmp_path / "f.zip").write_bytes(DATA[:-1])
    download_files([remote], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == DATA


@pytest.mark.parametrize("answer", [Answer(status=404), Answer(status=405), Answer(kind="close"), None])
def test_a_file_put_there_by_hand_is_taken_where_no_size_can_be_had(
    site: Site, tmp_path: Path, answer: Answer | None
) -> None:
    (tmp_path / "f.zip").write_bytes(b"by hand")
    remote = (
        RemoteFile(f"http://127.0.0.1:{closed_port()}/f.zip", "f.zip")
        if answer is None
        else site.remote("f.zip", "", answer)
    )
    download_files([remote, RemoteFile("gdrive://x", "f.zip")], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == b"by hand"
    assert [each["method"] for each in site.log] == ["HEAD"] * (answer is not None)


def test_a_wrong_file_is_replaced_but_not_before_a_right_one_is_there(site: Site, tmp_path: Path) -> None:
    (tmp_path / "f.zip").write_bytes(b"old")
    remote = site.remote("f.zip", None, Answer(status=404), Answer())
    failing([remote], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == b"old"
    download_files([remote], tmp_path, None)
    assert (tmp_path / "f.zip").read_bytes() == DATA


# Going on where it stopped


@pytest.mark.parametrize("answer", [Answer(drop=70_000), Answer(drop=70_000, reset=True)], ids=["closed", "reset"])
def test_a_broken_connection_is_taken_up_where_it_broke(site: Site, tmp_path: Path, answer: Answer) -> None:
    download_files([site.remote("f.zip", None, answer, Answer())], tmp_path, None)
    assert site.ranges == [None, "bytes=70000-"] and site.statuses == [200, 206]
    assert site.log[1]["if_range"] == '"one"'
    assert (tmp_path / "f.zip").read_bytes() == DATA and left(tmp_path) == ["f.zip"]


def test_tries_are_counted_anew_while_the_file_grows(site: Site, tmp_path: Path) -> None:
    download_files([site.remote("f.zip", None, *[Answer(drop=20_000)] * 9, Answer())], tmp_path, None)
    assert site.ranges == [None, *(f"bytes={20_000 * i}-" for i in range(1, 10))]
    assert (tmp_path / "f.zip").read_bytes() == DATA


def test_a_later_run_goes_on_with_the_part(site: Site, tmp_path: Path) -> None:
    dead = [Answer(drop=50_000), Answer(status=503), Answer(status=503)]
    remote = site.remote("f.zip", None, *dead, Answer())
    assert "200,000 bytes, md5:" in failing([remote], tmp_path, None)
    assert left(tmp_path) == [".f.zip.part", ".f.zip.part.json"]
    assert (tmp_path / ".f.zip.part").read_bytes() == DATA[:50_000]
    download_files([remote], tmp_path, None)
    assert site.ranges == [None, *["bytes=50000-"] * 3]
    assert (tmp_path / "f.zip").read_bytes() == DATA and left(tmp_path) == ["f.zip"]


def test_an_interrupt_leaves_a_part_to_go_on_with(site: Site, tmp_path: Path) -> None:
    big = random.Random(3).randbytes(3 << 20)
    remote = site.remote("f.zip", md5(big), Answer(big))

    def interrupt(what: str, done: int, total: int) -> None:
        if done > 1 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_files([remote], tmp_path, interrupt)
    size = (tmp_path / ".f.zip.part").stat().st_size
    assert 1 << 20 < size < 3 << 20 and not (tmp_path / "f.zip").exists()
    download_files([remote], tmp_path, None)
    assert site.ranges == [None, f"bytes={size}-"]
    assert (tmp_path / "f.zip").read_bytes() == big


def test_a_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    download_files([site.remote("f.zip", None, Answer(drop=70_000), Answer(ranges=False))], tmp_path, None)
    assert site.statuses == [200, 200]
    assert (tmp_path / "f.zip").read_bytes() == DATA


def test_an_etag_that_is_left_out_counts_as_another_unless_a_digest_is_known(site: Site, tmp_path: Path) -> None:
    for name, digest, changed, statuses in (
        ("a", md5(DATA), Answer(etag="", if_range=False), [200, 206]),
        ("b", "", Answer(OTHER, etag="", if_range=False), [200, 206, 200]),
    ):
        site.log.clear()
        download_files([site.remote(name, digest, Answer(drop=70_000), changed)], tmp_path, None)
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
    download_files([site.remote("f.zip", expected, Answer(drop=70_000), changed)], tmp_path, None)
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
    download_files([site.remote("f.zip", digest, Answer(drop=70_000, **mark), Answer(**mark))], tmp_path, None)
    assert site.log[1]["if_range"] == if_range and site.statuses == [200, status]
    assert (tmp_path / "f.zip").read_bytes() == DATA


def test_a_range_that_is_not_the_one_asked_for_is_not_appended(site: Site, tmp_path: Path) -> None:
    download_files([site.remote("f.zip", None, Answer(drop=70_000), Answer(shift=1), Answer())], tmp_path, None)
    assert site.ranges == [None, "bytes=70000-", None]
    assert (tmp_path / "f.zip").read_bytes() == DATA


@pytest.mark.parametrize(("size", "total", "ranges"), [(200_000, 200_000, []), (200_000, 0, ["bytes=200000-"])])
def test_a_part_that_is_complete_is_taken(
    site: Site, tmp_path: Path, size: int, total: int, ranges: list[str | None]
) -> None:
    remote = site.remote(digest="")
    (tmp_path / ".f.zip.part").write_bytes(DATA[:size])
    (tmp_path / ".f.zip.part.json").write_text(json.dumps({"url": remote.url, "validator": '"one"', "total": total}))
    download_files([remote], tmp_path, None)
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
    download_files([remote], tmp_path, None)
    assert site.ranges == ranges and (tmp_path / "f.zip").read_bytes() == DATA


def test_a_body_in_chunks_that_ends_early_is_not_the_file(site: Site, tmp_path: Path) -> None:
    download_files(
        [site.remote("f.zip", "", Answer(drop=70_000, kind="chunked"), Answer(kind="chunked"))], tmp_path, None
    )
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
                download_files([remote], Path(name), None)
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
                download_files([remote], Path(name), None)
        arrived = (Path(name) / "f.zip").read_bytes()
        assert [arrived == DATA, arrived == OTHER].count(True) == 1


# Several at once


def test_threads_take_turns_and_the_file_is_sent_once(site: Site, tmp_path: Path) -> None:
    remote = site.remote("f.zip", None, Answer(pause=0.3))
    said: list[str] = []
    threads = [
        threading.Thread(target=download_files, args=([remote], tmp_path, lambda what, done, total: said.append(what)))
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
        "import sys, os, signal; from pathlib import Path\n"
        "from s2a_bench.data.download import download_files, RemoteFile\n"
        "die = lambda what, done, total: os.kill(os.getpid(), signal.SIGKILL) if done > 1 << 20 else None\n"
        "download_files([RemoteFile(*sys.argv[1:4])], Path(sys.argv[4]), die if sys.argv[5] == 'die' else None)"
    )
    command = [sys.executable, "-c", code, remote.url, remote.file, remote.digest, str(tmp_path)]
    assert subprocess.run([*command, "die"], check=False).returncode == -9
    size = (tmp_path / ".f.zip.part").stat().st_size
    assert 0 < size < len(big)
    both = [subprocess.Popen([*command, "live"]) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert site.ranges == [None, f"bytes={size}-"]
    assert (tmp_path / "f.zip").read_bytes() == big and left(tmp_path) == ["f.zip"]

"""Downloads by way of the Hugging Face hub and of Google Drive."""

from __future__ import annotations

import errno
import re
import sys
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from bench.web_site import DATA, OTHER, failing, left, md5
from huggingface_hub.errors import LocalEntryNotFoundError
from s2a_bench.data.download import download_files
from s2a_bench.data.table.types import RemoteFile

pytestmark = pytest.mark.usefixtures("quick_web")


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
    remotes = [RemoteFile(HUB, "f.zip", md5(DATA)), RemoteFile(HUB.replace("name/", "name@v1/"), "g.zip")]
    said: list[str] = []
    download_files(remotes, tmp_path, lambda what, done, total: said.append(what))
    assert calls == [
        ("owner/name", "data/f.zip", "dataset", None),
        ("owner/name", "data/f.zip", "dataset", "v1"),
    ]
    assert left(tmp_path) == ["f.zip", "g.zip"] and "downloading f.zip" in said
    assert {(tmp_path / name).read_bytes() for name in left(tmp_path)} == {DATA}
    download_files(remotes[:1], tmp_path, None)
    assert len(calls) == 2
    said_last = failing([RemoteFile(HUB, "h.zip", md5(OTHER))], tmp_path, None)
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
    said = failing([RemoteFile(HUB, "f.zip"), RemoteFile(HUB, "g.zip")], tmp_path, None)
    assert words in said and len(count) == calls
    if not isinstance(error, OSError) or error.errno is None:
        page = "https://huggingface.co/datasets/owner/name/resolve/main/data/f.zip"
        assert f"f.zip from {page}" in said and f"g.zip from {page}" in said
    assert (tmp_path / ".f.zip.hub" / "half").exists()  # Its library goes on from there.


def test_an_address_of_the_hub_that_is_none(tmp_path: Path) -> None:
    assert "hf://datasets/OWNER/NAME/PATH" in failing([RemoteFile("hf://datasets/x", "f")], tmp_path, None)


def test_google_drive_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    said = failing([RemoteFile("gdrive://abc", "f.gz", "md5:00")], tmp_path, None)
    assert "f.gz (md5:00) from https://drive.google.com/uc?id=abc: " in said and "pip install 's2a-bench[data]'" in said


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
    remote = RemoteFile("gdrive://abc", "f.gz", md5(DATA))
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            download_files([remote], tmp_path, None)
    elif words:
        assert words in re.sub(r"\s+", " ", failing([remote], tmp_path, None))
    else:
        download_files([remote], tmp_path, None)
        assert (tmp_path / "f.gz").read_bytes() == DATA
    assert left(tmp_path) == ([] if words or error else ["f.gz"])

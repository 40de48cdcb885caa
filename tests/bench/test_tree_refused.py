"""Downloads that cannot be read: in a form that is not read here, without room, damaged, or made to do harm."""

from __future__ import annotations

import bz2
import gzip
import os
import resource
import tarfile
import zipfile
from pathlib import Path

import pytest
from bench.packed_files import entry, folder, refused, tar_of, zipped
from s2a_bench.data.readers.tree import Tree
from s2a_bench.errors import InputError

# What is no fault of the download


def test_a_zip_with_a_password_says_what_to_do(tmp_path):
    zipped(tmp_path / "x.zip", {"x.jpg": b"1"})
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    raw[6] |= 1
    raw[raw.find(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    said = refused(tmp_path / "x.zip", "has a password; extract it yourself")
    assert "download it again" not in said


def test_a_zip_with_a_method_that_python_lacks_says_what_to_do(tmp_path):
    zipped(tmp_path / "x.zip", {"x.jpg": b"1"})
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    raw[8] = raw[raw.find(b"PK\x01\x02") + 10] = 9  # deflate64, of which Windows makes use for large files
    (tmp_path / "x.zip").write_bytes(raw)
    said = refused(tmp_path / "x.zip", "cannot be read here .*; extract it yourself")
    assert "download it again" not in said


@pytest.mark.parametrize("name", ["x.rar", "x.7z", "x.tar.zst"])
def test_kinds_of_archives_that_are_not_read_are_called_so(tmp_path, name):
    folder(tmp_path, {name: b"Rar!"})
    refused(tmp_path / name, "of a kind that is not read here; extract it")


def test_no_room_to_unpack_is_said_as_such(tmp_path, monkeypatch):
    zipped(tmp_path / "x.zip", {"x.mat": b"1"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("s2a_bench.data.readers.archives.copy_stream", full)
    with Tree(tmp_path / "x.zip") as tree, pytest.raises(InputError, match=r"no room to unpack .*TMPDIR"):
        tree.path_on_disk("x.mat")


def test_no_folder_to_unpack_to_is_said_as_such(tmp_path, monkeypatch):
    zipped(tmp_path / "x.zip", {"x.mat": b"1"})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with Tree(tmp_path / "x.zip") as tree, pytest.raises(InputError, match="TMPDIR"):
        tree.path_on_disk("x.mat")


# Damage and harm


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path, mode):
    place = tar_of(tmp_path / "x.tar", *(entry(f"{i}.jpg", data=b"1") for i in range(4)), mode="w")
    raw = bytearray(place.read_bytes())
    raw[2 * 1024 + 20] ^= 0xFF
    place.write_bytes(gzip.compress(raw) if mode == "w:gz" else raw)
    refused(place, "not a readable archive .*damaged", read=False)


def test_a_tar_cut_between_two_files_is_noticed(tmp_path):
    place = tar_of(tmp_path / "x.tar", *(entry(f"{i}.jpg", data=b"1") for i in range(4)), mode="w")
    place.write_bytes(place.read_bytes()[: 2 * 1024])
    refused(place, "not a readable archive .*cut off", read=False)


def bomb(place: Path, kind: str, size: int) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(place / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            info = zipfile.ZipInfo("a/x.jpg")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as out:
                for _ in range(size >> 20):
                    out.write(bytes(1 << 20))
        return place / "x.zip"
    block = bz2.compress(bytes(size >> 3)) * 8  # streams one after another
    (place / "x.jpg.bz2").write_bytes(block)
    return place


@pytest.mark.full
@pytest.mark.parametrize("kind", ["zip", "alone"])
def test_a_bomb_is_not_read_into_memory(tmp_path, kind):
    place = bomb(tmp_path, kind, 1280 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(place, "largest image or list")
    with Tree(place) as tree, pytest.raises(InputError, match="out of all proportion"):
        tree.path_on_disk(tree.names[0])
    # 512 MB of a stream without a stated size are read before it is refused.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (1100 << 10 if kind == "alone" else 100 << 10)


def test_a_member_that_states_a_huge_size_is_refused_by_its_size(tmp_path):
    info, _ = entry("a/x.jpg")
    info.size = 1 << 40
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(4096))
    refused(tmp_path / "x.tar", "out of all proportion")


def test_a_large_file_in_a_folder_is_not_read_into_memory(tmp_path):
    folder(tmp_path, {"a/x.jpg": b"1"})
    with (tmp_path / "a" / "y.jpg").open("wb") as out:
        out.truncate(1 << 40)
    refused(tmp_path, "largest image or list")


def test_a_tar_header_made_to_fill_memory(tmp_path):
    info, _ = entry("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 1 << 33
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    refused(tmp_path / "x.tar", "not a readable archive")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40)])
def test_a_tar_that_states_a_negative_size_does_not_go_round_in_circles(tmp_path, kind, size):
    info, _ = entry("a/x.jpg", kind)
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = b"\xff" + (size & (1 << 88) - 1).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    first = tar_of(tmp_path / "x.tar", entry("a/y.jpg", data=b"1"), mode="w").read_bytes()[:1024]
    (tmp_path / "x.tar").write_bytes(first + raw + bytes(4096))
    refused(tmp_path / "x.tar", "not a readable archive .*a size of -")


def test_a_place_that_is_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "x.tar.gz")
    refused(tmp_path / "x.tar.gz", "is no file and no folder")

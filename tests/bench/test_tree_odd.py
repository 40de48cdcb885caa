"""Downloads as people have them: links, odd names, several archives."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from bench.packed_files import content, entry, folder, refused, tar, tar_of, zipped
from s2a_bench.data.readers.tree import Tree
from s2a_bench.errors import InputError

# Links in folders


def test_links_that_go_round_in_circles_add_nothing(tmp_path):
    base = folder(tmp_path / "base", {"a/x.jpg": b"1", "a/deep/y.jpg": b"2"})
    for name, target in (("one", "."), ("two", "."), ("a/up", ".."), ("a/deep/top", "../.."), ("out", "..")):
        (base / name).symlink_to(target)
    assert content(base) == {"a/x.jpg": b"1", "a/deep/y.jpg": b"2"}


def test_the_cost_of_links_grows_with_their_number_not_with_the_ways_through_them(tmp_path):
    base = tmp_path / "base"
    for i in range(25):
        folder(base, {f"d{i}/x{i}.jpg": bytes([i])})
        for name in ("p", "q"):
            (base / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    with Tree(base) as tree:  # 2 ** 25 ways
        assert len(tree.names) <= 25 * 3
        assert {f"d{i}/x{i}.jpg" for i in range(25)} <= set(tree.names)


def test_links_to_files_and_to_folders_elsewhere_are_followed(tmp_path):
    folder(tmp_path / "disk", {"cats/1.jpg": b"1", "2.jpg": b"2"})
    base = folder(tmp_path / "base", {"dogs/3.jpg": b"3"})
    (base / "cats").symlink_to(tmp_path / "disk" / "cats")
    (base / "dogs" / "2.jpg").symlink_to(tmp_path / "disk" / "2.jpg")
    assert content(base) == {"cats/1.jpg": b"1", "dogs/2.jpg": b"2", "dogs/3.jpg": b"3"}


@pytest.mark.parametrize("kind", ["broken link", "link to itself", "pipe", "device"])
def test_an_image_that_is_no_file_is_not_lost_without_a_word(tmp_path, kind):
    base = folder(tmp_path / "base", {"a/x.jpg": b"1"})
    odd = base / "a" / "y.jpg"
    match kind:
        case "broken link":
            odd.symlink_to("gone.jpg")
        case "link to itself":
            odd.symlink_to("y.jpg")
        case "pipe":
            os.mkfifo(odd)
        case "device":
            odd.symlink_to("/dev/zero")
    refused(base, "y.jpg cannot be read")


def test_a_folder_called_like_an_image_is_a_folder(tmp_path):
    assert content(folder(tmp_path / "base", {"x.jpg/y.jpg": b"1"})) == {"x.jpg/y.jpg": b"1"}


def test_folders_may_be_deep(tmp_path):
    name = "d/" * 90 + "x.jpg"
    assert content(folder(tmp_path / "base", {name: b"1"})) == {name: b"1"}


# Links in archives


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_hard_links_and_symbolic_links_of_a_tar_stand_for_their_files(tmp_path, mode):
    place = tar_of(
        tmp_path / "x.tar.gz",
        entry("set/a/x.jpg", data=b"image"),
        entry("./set/list.txt", data=b"text"),
        entry("set/b/hard.jpg", tarfile.LNKTYPE, "set/a/x.jpg"),
        entry("set/b/harder.jpg", tarfile.LNKTYPE, "./set/b/hard.jpg"),
        entry("set/b/soft.jpg", tarfile.SYMTYPE, "../a/x.jpg"),
        entry("set/c", tarfile.SYMTYPE, "b/../a"),
        entry("set/list2.txt", tarfile.LNKTYPE, "./set/list.txt"),
        entry("set/loop", tarfile.SYMTYPE, "."),
        entry("set/a/loop", tarfile.SYMTYPE, "../.."),
        mode=mode,
    )
    images = dict.fromkeys(
        ("set/a/x.jpg", "set/b/hard.jpg", "set/b/harder.jpg", "set/b/soft.jpg", "set/c/x.jpg"), b"image"
    )
    assert content(place) == images | {"set/list.txt": b"text", "set/list2.txt": b"text"}


def test_symbolic_links_of_a_zip_stand_for_their_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/x.jpg", b"image")
        for name, target in (("b/y.jpg", "../a/x.jpg"), ("c", "a")):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)
    assert content(tmp_path / "x.zip") == dict.fromkeys(("a/x.jpg", "b/y.jpg", "c/x.jpg"), b"image")


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.LNKTYPE, "gone.jpg"),
        (tarfile.SYMTYPE, "/etc/hostname"),
        (tarfile.SYMTYPE, "../../etc/hostname"),
        (tarfile.SYMTYPE, "y.jpg"),
    ],
)
def test_links_that_lead_nowhere_or_out_of_the_archive_are_refused(tmp_path, kind, target):
    place = tar_of(tmp_path / "x.tar", entry("a/x.jpg", data=b"1"), entry("a/y.jpg", kind, target), mode="w")
    said = refused(place, "a/y.jpg .* is a link to something that is not in the archive; extract it yourself")
    assert "download it again" not in said


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_in_a_tar_are_not_read(tmp_path, kind):
    refused(tar_of(tmp_path / "x.tar", entry("a/y.jpg", kind), mode="w"), "is a device or a pipe and no file")


# Names


def test_backslashes_of_a_zip_made_on_windows_are_separators(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("set\\", "set\\cats\\x.jpg", "set\\dogs/y.jpg"):
            archive.writestr(name, b"" if name.endswith("\\") else b"1")
    assert content(tmp_path / "x.zip") == {"set/cats/x.jpg": b"1", "set/dogs/y.jpg": b"1"}


def test_names_of_a_zip_without_the_flag_for_utf_8_are_utf_8_where_they_can_be(tmp_path):
    """Info-ZIP and macOS write UTF-8 without the flag: the same name as in the folder must come out."""
    names = ["caf\N{LATIN SMALL LETTER E WITH ACUTE}/\N{SNOWMAN}.jpg", "plain.jpg"]
    zipped(tmp_path / "x.zip", dict.fromkeys(names, b"1"))
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := raw.find(mark, at + 1)) >= 0:
            raw[at + offset + 1] &= ~0x08
    (tmp_path / "x.zip").write_bytes(raw)
    assert content(tmp_path / "x.zip") == dict.fromkeys(names, b"1")


ODD_NAMES = ["a:b.jpg", "dot./x.jpg", "\N{SNOWMAN}.jpg", "with space/ x .jpg", "#%20?.jpg", "CON/nul.jpg", "*.jpg"]


@pytest.mark.parametrize("how", ["folder", "tar", "zip"])
def test_odd_names_are_names(tmp_path, how):
    files = {name: name.encode() for name in ODD_NAMES}
    make = {"folder": folder, "tar": lambda p, f: tar(p.with_suffix(".tar"), f, "w"), "zip": lambda p, f: zipped(p, f)}
    assert content(make[how](tmp_path / "x.zip", files)) == files


@pytest.mark.parametrize("how", ["tar", "zip"])
def test_names_longer_than_a_file_system_takes(tmp_path, how):
    files = {"d" * 5000 + "/" + "x" * 5000 + ".jpg": b"1", "\N{SNOWMAN}" * 200 + ".txt": b"2", "m" * 300 + ".tar": b"3"}
    make = {"tar": lambda: tar(tmp_path / "x.tar", files, "w:gz"), "zip": lambda: zipped(tmp_path / "x.zip", files)}
    assert content(make[how]()) == files


def test_a_place_with_a_name_that_no_file_can_have(tmp_path):
    assert len(refused(tmp_path / ("x" * 5000), "does not exist")) < 600
    refused(Path(f"{tmp_path}/x\0y"), "does not exist")


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/../x.jpg"])
@pytest.mark.parametrize("how", ["tar", "zip"])
def test_paths_that_lead_out_of_the_archive_are_refused(tmp_path, how, name):
    files = {"a/y.jpg": b"1", name: b"2"}
    place = tar(tmp_path / "x.tar.gz", files) if how == "tar" else zipped(tmp_path / "x.zip", files)
    refused(place, "leads out of the archive")


@pytest.mark.parametrize("how", ["tar", "zip"])
def test_absolute_paths_lie_in_the_archive(tmp_path, how):
    files = {"/abs/x.jpg": b"1", "a//./y.jpg": b"2"}
    place = tar(tmp_path / "x.tar.gz", files) if how == "tar" else zipped(tmp_path / "x.zip", files)
    assert content(place) == {"abs/x.jpg": b"1", "a/y.jpg": b"2"}


def test_names_of_archives_may_be_in_upper_case(tmp_path):
    tar(tmp_path / "SET.TAR.GZ", {"x.jpg": b"1"})
    assert content(tmp_path, "set.tar.gz") == {"x.jpg": b"1"}


@pytest.mark.parametrize("how", ["tar", "zip"])
def test_a_member_twice_is_refused(tmp_path, how, recwarn):
    names = ("a/x.jpg", "./a/x.jpg")
    if how == "tar":
        tar_of(tmp_path / "x", *(entry(name, data=b"1") for name in names))
    else:
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            for name in names:
                archive.writestr(name, b"1")
    refused(tmp_path / "x", "holds a/x.jpg twice", ("x",))


def test_names_with_backslashes_in_a_folder_are_read_as_paths(tmp_path):
    """What a tool leaves that takes the names of a zip from Windows by the letter."""
    folder(tmp_path, {"set\\cats\\x.jpg": b"1", "set\\dogs\\y.jpg": b"2"})
    assert content(tmp_path) == {"set/cats/x.jpg": b"1", "set/dogs/y.jpg": b"2"}
    with Tree(tmp_path) as tree:
        assert tree.folder is None  # the names are no paths of files


# Several archives


def test_inner_archives_of_one_name_do_not_overwrite_each_other(tmp_path):
    inner = {}
    for i, place in enumerate(("train", "test")):
        tar(tmp_path / "inner.tar.gz", {f"{place}/{i}.jpg": place.encode()})
        inner[f"{place}/inner.tar.gz"] = (tmp_path / "inner.tar.gz").read_bytes()
    (tmp_path / "inner.tar.gz").unlink()
    zipped(tmp_path / "outer.zip", inner)
    assert content(tmp_path, "outer.zip", "inner.tar.gz") == {"train/0.jpg": b"train", "test/1.jpg": b"test"}


@pytest.mark.parametrize("packed", ["tar", "zip", "inner", "beside"])
def test_two_archives_that_disagree_about_a_file(tmp_path, packed):
    one, two = {"set/x.jpg": b"one", "x.txt": b"same"}, {"set/x.jpg": b"two", "x.txt": b"same"}
    names = ("a.tar.gz", "b.tar.gz")
    if packed == "tar":
        for name, files in zip(names, (one, two), strict=True):
            tar(tmp_path / name, files)
    elif packed == "zip":
        names = ("a.zip", "b.zip")
        for name, files in zip(names, (one, two), strict=True):
            zipped(tmp_path / name, files)
    elif packed == "inner":
        for name, files in zip(names, (one, two), strict=True):
            tar(tmp_path / name, files)
        zipped(tmp_path / "c.zip", {f"{n}/a.tar.gz": (tmp_path / n).read_bytes() for n in names})
        for name in names:
            (tmp_path / name).unlink()
    else:
        tar(tmp_path / "a.tar.gz", {"x.jpg": b"one", "x.txt": b"same"})
        folder(tmp_path, {"x.jpg": b"two", "x.txt": b"same"})
    said = refused(tmp_path, "each with another content", ("?.zip", "?.tar.gz"))
    assert "both hold" in said
    with Tree(tmp_path, ("?.zip", "?.tar.gz")) as tree:
        name = next(name for name in tree.names if name.endswith("x.jpg"))
        assert tree.read("x.txt") == tree.path_on_disk("x.txt").read_bytes() == b"same"
        assert list(tree.read_many(["x.txt"])) == [("x.txt", b"same")]
        for read in (tree.read, tree.path_on_disk):
            with pytest.raises(InputError, match="another content"):
                read(name)


def test_a_file_beside_its_packed_self(tmp_path):
    folder(tmp_path, {"x.mat": b"matrix", "x.mat.gz": gzip.compress(b"matrix")})
    assert content(tmp_path) == {"x.mat": b"matrix"}
    (tmp_path / "x.mat").write_bytes(b"matri")
    refused(tmp_path, "another content")


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    zipped(tmp_path / "last.zip", {"y.jpg": b"2"})
    files = {"x.jpg": b"1", "last.zip": (tmp_path / "last.zip").read_bytes()}
    (tmp_path / "last.zip").unlink()
    assert content(tar(tmp_path / "x.tar", files, "w"), "x.tar") == files


def test_an_archive_that_holds_itself_ends(tmp_path):
    data = b""
    for _ in range(8):
        zipped(tmp_path / "x.zip", {"x.zip": data, "x.jpg": data} if data else {"x.jpg": b"1"})
        data = (tmp_path / "x.zip").read_bytes()
    refused(tmp_path / "x.zip", "one in another", ("x.zip",))

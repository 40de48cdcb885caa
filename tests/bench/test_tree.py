"""One view of a download: the same paths and bytes however it is packed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from bench.packed_files import folder, tar, zipped
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench.data.readers.tree import Tree, path_below
from s2a_bench.errors import InputError

FILES = {
    "set/images/a.jpg": b"a" * 9,
    "set/images/sub/b.png": b"b",
    "set/labels.txt": b"a 1\n",
    "set/big.bin": bytes(99),
}
JUNK = {".DS_Store": b"x", "__MACOSX/set/._a.jpg": b"x", "set/images/.hidden.jpg": b"x"}


def packed(base: Path, how: str) -> Path:
    base.mkdir(exist_ok=True)
    everything = {**FILES, **JUNK}
    match how:
        case "folder":
            return folder(base, everything)
        case "tar.gz":
            return tar(base / "x.tar.gz", everything)
        case "tar":
            return tar(base / "x.tar", everything, "w")
        case "zip":
            return zipped(base / "x.zip", everything)
        case "tar in a folder":
            tar(base / "x.tar.gz", everything)
            return base
        case "tar in a folder in a folder":
            (base / "deep").mkdir()
            tar(base / "deep" / "x.tar.gz", everything)
            return base
        case _:
            tar(base / "inner.tar.gz", everything)
            outer = zipped(base / "outer.zip", {"y/inner.tar.gz": (base / "inner.tar.gz").read_bytes()})
            (base / "inner.tar.gz").unlink()
            return outer


HOW = ["folder", "tar.gz", "tar", "zip", "tar in a folder", "tar in a folder in a folder", "tar in a zip"]


@pytest.mark.parametrize("how", HOW)
def test_every_packing_is_the_same(tmp_path, how):
    with Tree(packed(tmp_path / "x", how), ("x.tar.gz", "inner.*")) as tree:
        assert tree.names == sorted(FILES)
        assert dict(tree.read_many(FILES)) == FILES
        assert {name: tree.read(name) for name in FILES} == FILES
        assert {name: tree.path_on_disk(name).read_bytes() for name in FILES} == FILES
        assert tree.find("labels.txt") == "set/labels.txt" and tree.read_text("set/labels.txt") == "a 1\n"
        assert tree.files_under("images") == ["set/images/a.jpg", "set/images/sub/b.png"]
        assert [path_below(name, "set/images") for name in tree.files_under("set/images")] == ["a.jpg", "sub/b.png"]
        assert tree.has("images/a.jpg") and not tree.has("s/a.jpg")
        for path, part in (("none.txt", "holds no none.txt"), ("set/none", "holds no set/none")):
            with pytest.raises(InputError, match=part):
                tree.find(path)
        with pytest.raises(InputError, match="no file nowhere"):
            list(tree.read_many(["nowhere"]))


def test_scratch_files_are_deleted(tmp_path):
    with Tree(packed(tmp_path / "x", "tar in a zip"), ("inner.*",)) as tree:
        path = tree.path_on_disk("set/big.bin")
        assert path.exists()
    assert not path.exists()


def test_files_packed_alone_are_unpacked(tmp_path):
    (tmp_path / "x.mat.gz").write_bytes(gzip.compress(b"matrix"))
    for place in (tmp_path, tmp_path / "x.mat.gz"):
        with Tree(place) as tree:
            assert tree.names == ["x.mat"] and tree.read("x.mat") == b"matrix"
            assert tree.path_on_disk("x.mat").read_bytes() == b"matrix"
    (tmp_path / "x.mat.gz").write_bytes(gzip.compress(b"matrix" * 999)[:-9])
    with Tree(tmp_path) as tree, pytest.raises(InputError, match="not a readable archive"):
        tree.read("x.mat")


def test_a_file_twice(tmp_path):
    with Tree(folder(tmp_path, {"a/x.txt": b"1", "b/x.txt": b"2"})) as tree, pytest.raises(InputError, match="2 times"):
        tree.find("x.txt")


@pytest.mark.parametrize("how", ["tar.gz", "zip", "tar in a zip"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_cut_archive_is_one_clear_error(tmp_path_factory, how, data):
    place = packed(tmp_path_factory.mktemp("x"), how)
    whole = place.read_bytes()
    place.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        with Tree(place, ("inner.*",)) as tree:
            assert dict(tree.read_many(tree.names)) == FILES  # what a cut leaves out held nothing
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip", "x.tar"])
def test_a_page_instead_of_an_archive(tmp_path, name):
    (tmp_path / name).write_text("<html>Quota exceeded</html>")
    with pytest.raises(InputError, match="not a readable archive"):
        Tree(tmp_path / name)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Tree(tmp_path / "none")

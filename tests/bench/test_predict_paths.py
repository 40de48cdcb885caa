"""Which images are meant: files, folders, patterns, lists of names of any form. Nothing here needs torch."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.data.images import read_image_bytes
from s2a_bench.errors import InputError
from s2a_bench.inference import checks
from s2a_bench.inference.paths import find_images, read_names

ODD = ["-x.jpg", "two\nlines.png", "größe.JPEG", "🦊.webp", " space .png", "50%[a].bmp", "b\udcff.png", "*.jpg"]


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """Images, others' images, hidden files, and a link that leads in circles."""
    monkeypatch.chdir(tmp_path)
    for name in ["a.jpg", "b.txt", ".hid.jpg", "sub/c.PNG", "sub/deep/d.tif", "sub/.git/e.jpg", "__MACOSX/f.jpg"]:
        path = Path("in", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    Path("in/sub/round").symlink_to(tmp_path / "in")
    Path("empty").mkdir()
    return tmp_path


def test_a_folder_is_searched_without_hidden_files(tree):
    """TIFF too: what cannot be read is named when it is opened, and not passed over."""
    assert find_images(["in"]) == ["in/a.jpg", "in/sub/c.PNG", "in/sub/deep/d.tif"]
    assert find_images([tree / "in" / "sub"]) == [str(tree / "in/sub/c.PNG"), str(tree / "in/sub/deep/d.tif")]


def test_the_order_is_kept_and_each_file_named_once(tree):
    given = ["in/sub/c.PNG", "in", "in/../in/a.jpg", str(tree / "in/a.jpg"), "in/b.txt"]
    assert find_images(given) == ["in/sub/c.PNG", "in/a.jpg", "in/sub/deep/d.tif", "in/b.txt"]


def test_patterns_are_expanded_unless_a_file_has_that_name(tree):
    assert find_images(["in/**/*.[Pt]*"]) == ["in/b.txt", "in/sub/c.PNG", "in/sub/deep/d.tif"]
    assert find_images(["in/s*"]) == ["in/sub/c.PNG", "in/sub/deep/d.tif"]
    Path("in/*.jpg").write_bytes(b"")
    assert find_images(["in/*.jpg"]) == ["in/*.jpg"]


def test_all_that_is_missing_is_said_at_once(tree):
    with pytest.raises(InputError) as caught:
        find_images(["in/a.jpg", "no.jpg", "no/*.jpg", "empty", "x" * 5000])
    words = ("no.jpg", "no/*.jpg", "empty has no images", "xxxx")
    assert [word in line for word, line in zip(words, str(caught.value).splitlines(), strict=True)] == [True] * 4


def test_names_of_a_list_stand_where_the_dash_is(tree):
    found = find_images(["in/sub/c.PNG", "-", "in/b.txt"], ["gone.jpg", "in/a.jpg", "in/*.jpg", "in/sub"])
    assert found == ["in/sub/c.PNG", "gone.jpg", "in/a.jpg", "in/*.jpg", "in/sub/deep/d.tif", "in/b.txt"]
    assert find_images(["in/a.jpg"], ["in/b.txt"]) == ["in/a.jpg"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_come_back_as_they_are(tree, name):
    Path("odd").mkdir()
    Path("odd", name).write_bytes(b"")
    assert find_images(["odd"]) == [f"odd/{name}"] == find_images([f"odd/{name}"])
    names = read_names(io.BytesIO(os.fsencode(f"odd/{name}") + b"\0"), null=True)
    assert find_images(["-"], names) == [f"odd/{name}"]


@given(st.lists(st.binary(min_size=1).filter(lambda name: b"\0" not in name)))
def test_a_list_of_zero_ended_names_is_any_bytes(names):
    found = read_names(io.BytesIO(b"".join(name + b"\0" for name in names)), null=True)
    if not names or not names[0].startswith(b"\xef\xbb\xbf"):
        assert [os.fsencode(name) for name in found] == names


@given(st.binary())
def test_a_list_of_lines_is_any_bytes(data):
    """A zero byte too, from a list that was meant for --null: whoever opens the file says what is wrong."""
    names = read_names(io.BytesIO(data))
    assert set(find_images(["-"], names)) <= set(names)


def test_a_name_with_a_zero_byte_is_a_sentence():
    with pytest.raises(InputError, match=r"a.x00b"):
        read_image_bytes(Path("a\0b"))


def test_a_list_of_lines_may_come_from_windows():
    data = "\ufeffa.jpg\r\n\r\ngröße.jpg\r\nlast.jpg".encode()
    assert read_names(io.BytesIO(data)) == ["a.jpg", "größe.jpg", "last.jpg"]


def test_an_adapter_is_a_folder_an_output_or_a_hub_id(tree):
    for folder in ("adapter", "out/adapter"):
        Path(folder).mkdir(parents=True)
        Path(folder, checks.CONFIG).write_text("{}")
    assert checks.find_adapter("adapter") == "adapter"
    assert checks.find_adapter(Path("out")) == "out/adapter"
    assert checks.find_adapter("owner/name") == "owner/name"
    assert checks.find_adapter("owner/name@v1") == "owner/name@v1"
    for wrong, words in {
        "in": "is a folder without adapter_config.json",
        "in/a.jpg": "is a file",
        "in/adapter": "There is no folder in/adapter",  # its first part is a folder here, so no owner
        "./x": "There is no folder",
        "nothing": "There is no folder",
        "a b/c": "There is no folder",
    }.items():
        with pytest.raises(InputError, match=words):
            checks.find_adapter(wrong)

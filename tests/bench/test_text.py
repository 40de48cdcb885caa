"""Lists and tables as editors on any system save them, and names that are no text."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from bench.folder_sources import DOMAIN_ROW, EUROSAT_ROW, ROW, SUN_ROW, load, write
from s2a_bench.cli.main import main
from s2a_bench.data.folder import read_list
from s2a_bench.data.open_source import open_source
from s2a_bench.data.readers.listed import READERS as LISTED
from s2a_bench.data.readers.published_splits import read_split
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset, FractionRule, Preparation
from s2a_bench.data.text import decode_text
from s2a_bench.errors import InputError

WAYS = {
    "plain": lambda text: text.encode(),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "Windows lines": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac lines": lambda text: text.replace("\n", "\r").encode(),
    "Windows Notepad": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "UTF-16": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "UTF-16 big-endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
}
TEXT = "images/a.jpg 0\nimages/caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg 1\n\nimages/x y.jpg 2\n"


@pytest.mark.parametrize("way", WAYS)
def test_text_is_the_same_however_it_was_saved(way):
    assert decode_text(WAYS[way](TEXT), "list") == TEXT


@pytest.mark.parametrize(
    "data", [b"caf\xe9.jpg 1\n", b"\xff\xfea", b"\xff\xfe", b"a\0b", TEXT.encode("utf-16-le"), bytes(range(128, 256))]
)
def test_what_is_no_text_is_one_sentence(data):
    with pytest.raises(InputError, match="the list is not text") as caught:
        decode_text(data, "the list")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_every_reader_of_lists_takes_every_way(tmp_path, way):
    """The same list beside the source, in a prepared folder, as JSON, in a table of classes."""
    # A folder's own lists
    (tmp_path / "val200.txt").write_bytes(WAYS[way](TEXT))
    assert [(e.path, e.label) for e in read_list(tmp_path, "val200", ROW)] == [
        (line.rpartition(" ")[0], int(line[-1])) for line in TEXT.splitlines() if line
    ]
    # DomainNet's
    place = tmp_path / "domain"
    names = [f"clipart/{folder}/clipart_{i}_{n}.jpg" for i, folder in enumerate(("ant", "bee", "cat")) for n in (1, 2)]
    write(place, names)
    for n, part in ((1, "train"), (2, "test")):
        lines = "".join(f"{name} {name.split('_')[1]}\n" for name in names if name.endswith(f"_{n}.jpg"))
        (place / f"clipart_{part}.txt").write_bytes(WAYS[way](lines))
    source, _ = load(place, DOMAIN_ROW)
    assert {(i.name, i.label, i.part) for i in source.images} == {
        (name, int(name.split("_")[1]), "train" if name.endswith("_1.jpg") else "test") for name in names
    }
    # CoOp's split file
    slash = "\\" if way.startswith("Windows") else "/"
    every = [[name.replace("/", slash), int(name.split("_")[1]), name.split("/")[1]] for name in names]
    rows = {"train": every[:3:2] + every[4:5], "val": every[1:2], "test": every[3:4]}
    (tmp_path / "split_zhou_x.json").write_bytes(WAYS[way](json.dumps(rows)))
    lists, labels, *_ = read_split(tmp_path / "split_zhou_x.json", "coop", DOMAIN_ROW, source)
    assert lists["val"] == (names[1],) and labels[names[3]] == 1


def test_a_name_with_what_unicode_takes_for_a_line_end_stays_whole(tmp_path):
    name = "images/a\x85b\u2028c\x0b.jpg"
    (tmp_path / "val200.txt").write_text(f"{name} 1\n", encoding="utf-8")
    assert [e.path for e in read_list(tmp_path, "val200", ROW)] == [name]


@pytest.mark.parametrize("digits", [12, 5000])
def test_a_label_of_very_many_digits(tmp_path, digits):
    (tmp_path / "val200.txt").write_text(f"images/a.jpg {'9' * digits}\n")
    with pytest.raises(InputError, match="out of range") as caught:
        read_list(tmp_path, "val200", ROW)
    assert len(str(caught.value)) < 500


def test_a_number_of_very_many_digits_in_the_lists_of_a_source(tmp_path):
    for file, line in (("trainval", f"Cat_1 {'9' * 5000} 1 1\n"), ("test", "Cat_2 1 1 1\n")):
        write(tmp_path, [], **{f"annotations/{file}.txt": line})
    write(tmp_path, ["images/Cat_1.jpg", "images/Cat_2.jpg"])
    pets = next(reader for reader in LISTED if reader.name == "pets")
    row = dataclasses.replace(ROW, preparation=Preparation("pets", ROW.preparation, ()))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not a whole number") as caught, Tree(tmp_path) as tree:
        pets.open(tree, row)
    assert len(str(caught.value)) < 500


# Names that are no text


def eurosat(place: Path, odd: str) -> Path:
    files = write(place, [f"2750/c{i}/x{n}.jpg" for i in range(10) for n in range(12)])
    shutil.copy(place / next(iter(files)), place / "2750" / "c3" / odd)
    return place


def chosen(place: Path, dataset: Dataset) -> int:
    assert dataset.preparation is not None
    preparation = dataclasses.replace(dataset.preparation, rule=FractionRule())
    with open_source(dataset, preparation, place, None, "miniature", lambda *_: None) as opened:
        return len(opened.source.images)


@pytest.mark.parametrize(
    ("odd", "words"), [(os.fsdecode(b"caf\xe9.jpg"), r"not UTF-8, b'c3/caf\\xe9.jpg'"), ("a\nb.jpg", "line break")]
)
def test_an_image_with_a_name_that_is_no_text_is_one_sentence(tmp_path, odd, words):
    with pytest.raises(InputError, match=words) as caught:
        chosen(eurosat(tmp_path, odd), EUROSAT_ROW)
    assert "\n" not in str(caught.value)
    str(caught.value).encode("utf-8")


def test_other_files_may_be_called_as_they_like(tmp_path):
    eurosat(tmp_path, "fine.jpg")
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"notes")
    (tmp_path / os.fsdecode(b"d\xe9")).mkdir()
    assert chosen(tmp_path, EUROSAT_ROW) == 121


def test_sun397_with_a_name_that_is_no_text(tmp_path):
    write(tmp_path, [f"SUN397/{c}/{c}ar/sun_{n}.jpg" for c in "abc" for n in range(5)])
    write(tmp_path, [os.fsdecode(b"SUN397/a/aar/sun_caf\xe9.jpg")])
    with pytest.raises(InputError, match="not UTF-8"):
        chosen(tmp_path, SUN_ROW)


LONG = "x" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "prepare", "eurosat", "--from", LONG, "--data-dir", "D"),
        ("data", "prepare", "eurosat", "--from", "F", "--split", LONG, "--data-dir", "D"),
        ("data", "prepare", "eurosat", "--from", "F", "--data-dir", LONG),
        ("data", "verify", "eurosat", "--data-dir", LONG),
        ("data", "list", "--data-dir", LONG),
    ],
    ids=["--from", "--split", "--data-dir of prepare", "of verify", "of list"],
)
def test_a_path_that_is_too_long_is_one_sentence(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    eurosat(tmp_path / "F", "fine.jpg")
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("s2a-bench: ") and "\n" not in said

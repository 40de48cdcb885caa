"""Data that a cell cannot use: one sentence, before anything is trained."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.small_folders import HALF, config, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench.cells import pretrain
from s2a_bench.config import DataConfig
from s2a_bench.data import folder as layout
from s2a_bench.data import images
from s2a_bench.data.listing import list_datasets
from s2a_bench.data.loading import check_data, load_data
from s2a_bench.data.verify import verify_dataset
from s2a_bench.errors import InputError

# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"suite": "nimi"}, ["suite 'nimi'", "did you mean mini"]),
        ({"dataset": "digit"}, ["'digit'", "did you mean digits"]),
        ({"evaluate": "train"}, ["evaluate", "'train'", "test, val"]),
        ({"limit_train": 0}, ["limit_train=0", "at least 1"]),
        ({"limit_test": -3}, ["limit_test=-3"]),
        ({"suite": "vtab", "dataset": "caltech101"}, ["no data folder was given", "data prepare caltech101"]),
        ({"suite": "vtab", "dataset": "svhn"}, ["no data folder was given", "data prepare svhn", "train_32x32.mat"]),
    ],
)
def test_bad_configs(changes, parts):
    for call in (check_data, lambda c: load_data(c, size=32, **HALF)):
        with pytest.raises(InputError) as error:
            call(dataclasses.replace(DataConfig(), **changes))
        for part in parts:
            assert part in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"mean": (0.5,)},
        {"std": (0.5, 0.0, 0.5)},
        {"interpolation": "bicubi"},
    ],
)
def test_bad_views(changes):
    with pytest.raises(InputError):
        load_data(DataConfig(), **{"size": 32, **HALF, **changes})


def test_missing_data_names_path_and_command(tmp_path):
    for make in (lambda: None, lambda: (tmp_path / "caltech101").mkdir()):
        make()
        with pytest.raises(InputError) as error:
            check_data(config(tmp_path / "caltech101"))
        for part in (str(tmp_path / "caltech101"), f"data prepare caltech101 --from DOWNLOAD --data-dir {tmp_path}"):
            assert part in str(error.value)


DAMAGE = {
    "list missing": (lambda f: (f / "test.txt").unlink(), r"test\.txt cannot be read"),
    "list is a folder": (lambda f: ((f / "test.txt").unlink(), (f / "test.txt").mkdir()), r"test\.txt cannot be read"),
    "list too short": (lambda f: rewrite(f, lambda lines: lines[:-1]), r"has 6 images but svhn has 7"),
    "list too long": (lambda f: rewrite(f, lambda lines: [*lines, "images/val200/000000.png 0"]), "has 8 images"),
    "list empty": (lambda f: rewrite(f, lambda lines: []), "has 0 images"),
    "no label": (lambda f: rewrite(f, lambda lines: [*lines[:-1], "images/test/000006.png"]), r"test\.txt:7: .*form"),
    "label not whole": (lambda f: rewrite(f, lambda lines: [lines[0] + ".5", *lines[1:]]), r"test\.txt:1: .*form"),
    "label negative": (lambda f: rewrite(f, lambda lines: ["images/test/000000.png -1", *lines[1:]]), "form"),
    "label too large": (lambda f: rewrite(f, lambda lines: ["images/test/000000.png 10", *lines[1:]]), "out of range"),
    "path outside": (lambda f: rewrite(f, lambda lines: ["../../etc/passwd 0", *lines[1:]]), "not a plain path"),
    "absolute path": (lambda f: rewrite(f, lambda lines: ["/etc/passwd 0", *lines[1:]]), "not a plain path"),
    "repeated": (lambda f: rewrite(f, lambda lines: [lines[1], *lines[1:]]), r"test\.txt:2: .*listed twice"),
    "binary": (lambda f: (f / "test.txt").write_bytes(b"\x80\x81"), "not text"),
    "image missing": (lambda f: (f / "images/test/000002.png").unlink(), r"test\.txt:3: .*000002\.png cannot be read"),
    "manifest broken": (lambda f: (f / layout.MANIFEST).write_text("[]"), "manifest.json cannot be used"),
    "manifest too deep": (lambda f: (f / layout.MANIFEST).write_text("[" * 200_000), "manifest.json cannot be used"),
}


def rewrite(folder: Path, change) -> None:
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("".join(line + "\n" for line in change(lines)))


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folders_are_found_before_a_sweep_starts(svhn, case):
    folder, _ = svhn
    damage, message = DAMAGE[case]
    damage(folder)
    for call in (check_data, lambda c: load_data(c, size=8, **HALF)):
        with pytest.raises(InputError, match=message) as error:
            call(config(folder))
        assert "\n" not in str(error.value)


ODD = [None, -1, 1.5, True, "x", [], {}, ["a"], {"a": 1}, {"a": {"b": 1}}, float("nan")]


@pytest.mark.parametrize("place", ["", "files", "a file", "lists", "counts", "code"])
def test_a_manifest_with_values_of_other_types_is_refused(caltech, place):
    """A value of the same type may be another dataset's, or of changed files: this says nothing of those."""
    path = caltech / layout.MANIFEST
    whole = path.read_text()
    values = json.loads(whole)
    inside = next(iter(values["files"].values())) if place == "a file" else values[place] if place else values
    for key, right in list(inside.items()):
        for odd in ODD:
            known = (key, odd) in (("label", None), ("schema", True)) or (key == "own" and isinstance(odd, dict))
            if type(odd) is type(right) or known:
                continue
            inside[key] = odd
            path.write_text(json.dumps(values))
            for use in (lambda: check_data(config(caltech)), lambda: layout.read_manifest(caltech)):
                with pytest.raises(InputError, match=r"manifest\.json cannot be used"):
                    use()
            assert any("cannot be used" in problem.what for problem in verify_dataset("caltech101", caltech.parent))
            list_datasets(caltech.parent)
        inside[key] = right
    path.write_text(whole)
    check_data(config(caltech))


@settings(max_examples=200)
@given(text=st.text(max_size=60))
def test_lists_of_any_text_give_entries_or_problems(text):
    for item in layout.parse_list(text, classes=5):
        if isinstance(item, layout.ListedImage):
            assert (
                0 <= item.label < 5 and item.path and not item.path.startswith("/") and ".." not in item.path.split("/")
            )
        else:
            assert item[0] >= 1 and item[1]


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z0-9_]+(/[a-zA-Z0-9_ .-]*[a-zA-Z0-9])?", fullmatch=True), st.integers(0, 9))),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_lists_are_read_as_they_were_written(items, ending):
    text = "".join(f"{path} {label}{ending}" for path, label in items)
    got = list(layout.parse_list(text, classes=10))
    assert [(item.path, item.label) for item in got if isinstance(item, layout.ListedImage)] == items


# --- Decoding --------------------------------------------------------------------------------------------------------


def test_class_folders_from_folder_and_archive(tmp_path):
    folder = tmp_path / "cifar"
    for split, n in (("train", 3), ("test", 2)):
        for label in ("cat", "ant"):
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                picture(i + 10 * len(label), 8, 8).save(folder / split / label / f"{i}.png")
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar")
    first = pretrain.load_class_folders(folder, "train", 8)
    second = pretrain.load_class_folders(tmp_path / "cifar.tar.gz", "train", 8)
    torch.testing.assert_close(first[0], second[0])
    assert first[1].tolist() == second[1].tolist() == [0, 0, 0, 1, 1, 1]
    assert first[2] == ["ant", "cat"]
    np.testing.assert_array_equal(first[0][0].permute(1, 2, 0).numpy(), np.asarray(picture(30)))
    with pytest.raises(FileNotFoundError, match="holds no image"):
        pretrain.load_class_folders(folder, "val", 8)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        pretrain.load_class_folders(tmp_path / "none", "train", 8)


@given(st.binary(min_size=1, max_size=200))
def test_bytes_that_are_no_image_are_an_input_error(content):
    with pytest.raises(InputError, match=r"x\.jpg cannot be decoded"):
        images.decode_rgb(content, "x.jpg")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 600), format=st.sampled_from(["PNG", "JPEG", "BMP"]))
def test_truncated_images_are_an_input_error(cut, format):
    out = io.BytesIO()
    picture(3, 16, 16).save(out, format)
    content = out.getvalue()
    try:
        got = images.decode_rgb(content[: max(1, len(content) - cut)], "x")
    except InputError:
        return
    # Bytes after the last pixel may go missing unnoticed, pixels may not.
    np.testing.assert_array_equal(np.asarray(got), np.asarray(images.decode_rgb(content, "x")))

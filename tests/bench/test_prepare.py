"""Preparing a download: whole or not at all."""

from __future__ import annotations

import dataclasses
import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from bench.small_caltech import (
    ARCHIVE,
    FILES,
    FOLDER,
    PER_CLASS,
    SIZES,
    entries,
    jpeg,
    nothing_there,
    source_files,
    write_folder,
    write_tar,
    wrong,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s2a_bench.data import folder as layout
from s2a_bench.data import splits
from s2a_bench.data.prepare import prepare_dataset
from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.table.lookup import DATASETS, Counts
from s2a_bench.data.table.types import VTAB_LISTS
from s2a_bench.data.verify import verify_dataset
from s2a_bench.errors import InputError
from s2a_bench.files import reserved

# --- Good input ------------------------------------------------------------------------------------------------------


def test_caltech_of_full_width(tmp_path, monkeypatch):
    """All 102 classes and the real preparation, with few and tiny images."""
    row = DATASETS["caltech101"]
    assert row.preparation is not None
    shown = {"background_google": "BACKGROUND_Google", "faces": "Faces", "leopards": "Leopards"}
    names = [shown.get(name, name) for name in row.preparation.class_names]
    random.Random(0).shuffle(names)
    sizes = [31 + i % 3 for i in range(102)]
    files = source_files(names, sizes)
    counts = Counts(800, 200, 1000, sum(sizes) - 30 * 102)
    monkeypatch.setitem(DATASETS, "caltech101", dataclasses.replace(row, counts=counts))
    folder = prepare_dataset("caltech101", write_tar(tmp_path / ARCHIVE, files), tmp_path / "root")
    assert wrong(tmp_path / "root") == []

    lists = {name: entries(folder, name) for name in VTAB_LISTS}
    assert {name: len(each) for name, each in lists.items()} == dict(zip(VTAB_LISTS, counts, strict=True))
    assert lists["train800val200"] == lists["train800"] + lists["val200"]
    by_content = {data: name for name, data in files.items()}
    for name in ("train800", "val200", "test"):
        for i, (path, label) in enumerate(lists[name]):
            assert path == f"images/{name}/{i:06d}.jpg"
            origin = by_content.pop((folder / path).read_bytes())  # the original bytes, each image once
            assert row.preparation.class_names[label] == origin.split("/")[0].lower()
    per_class = Counter(name.split("/")[0] for name in by_content.values())  # the rest of the pool, in no list
    assert sum(per_class.values()) == 30 * 102 - 1000
    in_test = Counter(label for _, label in lists["test"])
    expected = {row.preparation.class_names.index(n.lower()): size - 30 for n, size in zip(names, sizes, strict=True)}
    assert in_test == expected

    manifest = layout.read_manifest(folder)
    assert manifest is not None and manifest.split_id.startswith("s2a-seed") and not manifest.lossy
    assert manifest.classes == row.preparation.class_names and manifest.counts == dict(
        zip(VTAB_LISTS, counts, strict=True)
    )
    for path, info in manifest.files.items():
        assert files[info.source] == (folder / path).read_bytes()


def packings(base: Path) -> dict[str, Path]:
    """The same images in every form that people have them in."""
    for name in "abcdef":
        (base / name).mkdir(parents=True)
    write_tar(base / "a" / ARCHIVE, FILES)
    write_folder(base / "b" / FOLDER, FILES)
    write_tar(base / "c" / ARCHIVE, dict(reversed(FILES.items())), extra=False)
    (base / "d" / "caltech-101").mkdir()
    write_tar(base / "d" / "caltech-101" / ARCHIVE, FILES)
    with zipfile.ZipFile(base / "e" / "caltech-101.zip", "w") as outer:
        outer.write(base / "a" / ARCHIVE, f"caltech-101/{ARCHIVE}")
        outer.writestr(f"__MACOSX/caltech-101/._{ARCHIVE}", b"x")
        outer.writestr("caltech-101/Annotations.tar", b"x")
    with zipfile.ZipFile(base / "f" / "caltech-101.zip", "w") as outer:
        for name, data in FILES.items():
            outer.writestr(f"caltech-101/{FOLDER}/{name}", data)
    return {
        "archive": base / "a" / ARCHIVE,
        "parent of archive": base / "a",
        "folder": base / "b" / FOLDER,
        "parent of folder": base / "b",
        "archive in another order": base / "c" / ARCHIVE,
        "outer folder": base / "d",
        "outer zip": base / "e" / "caltech-101.zip",
        "parent of outer zip": base / "e",
        "plain zip": base / "f" / "caltech-101.zip",
    }


def test_every_packing_gives_the_same_dataset(tmp_path, tiny):
    seen = set()
    for name, place in packings(tmp_path / "sources").items():
        folder = prepare_dataset("caltech101", place, tmp_path / name)
        manifest = layout.read_manifest(folder)
        assert manifest is not None
        files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        seen.add(str((sorted((p, d) for p, d in files.items() if p.name != layout.MANIFEST), manifest.source_id)))
    assert len(seen) == 1


def test_again_is_a_no_op_that_says_so(tmp_path, prepared, source):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in prepared.rglob("*")}
    told = []
    assert prepare_dataset("caltech101", source.parent, tmp_path / "root", lambda *args: told.append(args)) == prepared
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in prepared.rglob("*")} == before
    assert "already prepared" in told[-1][0]


def test_progress_counts_up_to_its_total(tmp_path, source):
    told: dict[str, list[tuple[int, int]]] = {}
    prepare_dataset(
        "caltech101",
        source,
        tmp_path / "root",
        lambda what, done, total: told.setdefault(what, []).append((done, total)),
    )
    for what in ("reading the source", "verifying images"):
        steps = [done for done, _ in told[what]]
        assert steps == list(range(1, told[what][0][1] + 1))


def test_an_empty_folder_is_not_in_the_way(tmp_path, source):
    (tmp_path / "root" / "caltech101").mkdir(parents=True)
    assert wrong(prepare_dataset("caltech101", source, tmp_path / "root").parent) == []


def test_images_are_readable_by_others(prepared):
    assert prepared.stat().st_mode & 0o055 == 0o055


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_source(tiny, order):
    items = items_of(tiny)
    shuffled = list(items)
    order.shuffle(shuffled)
    assert chosen(tiny, shuffled) == chosen(tiny, items)


def items_of(row) -> list[SourceImage]:
    labels = {name: i for i, name in enumerate(row.preparation.class_names)}
    return [SourceImage(name, labels[name.split("/")[0].lower()]) for name in FILES]


def chosen(row, items, **preparation) -> dict[str, tuple[SourceImage, ...]]:
    source = Source(tuple(items), row.preparation.class_names, lambda names: iter(()))
    return dict(splits.split_source(row, dataclasses.replace(row.preparation, **preparation), source).lists)


def test_another_seed_chooses_other_images(tiny):
    first, second = (chosen(tiny, items_of(tiny), seed=seed) for seed in (0, 1))
    assert {item.name for item in first["test"]} != {item.name for item in second["test"]}


# --- Bad input: one sentence, nothing left behind --------------------------------------------------------------------


def fails(tmp_path: Path, source: Path, *parts: str) -> None:
    root = tmp_path / "root"
    with pytest.raises(InputError) as error:
        prepare_dataset("caltech101", source, root)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert nothing_there(root)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("calltech", "did you mean caltech101"),
        ("svhn", "contains no known format of svhn"),
        ("digits", "embedded"),
    ],
)
def test_datasets_that_cannot_be_prepared(tmp_path, name, part):
    with pytest.raises(InputError, match="(?i)" + part.replace("(", r"\(")):
        prepare_dataset(name, tmp_path, tmp_path / "root")


def test_no_source(tmp_path, tiny):
    fails(tmp_path, tmp_path / "nowhere", "nowhere does not exist", ARCHIVE)
    (tmp_path / "empty").mkdir()
    fails(tmp_path, tmp_path / "empty", "contains no known format of caltech101", ARCHIVE)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_broken_archive(tmp_path, source, kept):
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * kept)])
    fails(tmp_path, source, ARCHIVE)


def test_damaged_archive(tmp_path, source):
    data = bytearray(source.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    source.write_bytes(data)
    fails(tmp_path, source, "not a readable archive", "download it again")


def test_a_file_that_is_no_archive(tmp_path, tiny):
    (tmp_path / "page.tar.gz").write_text("<html>Quota exceeded</html>")
    fails(tmp_path, tmp_path / "page.tar.gz", "not a readable archive")


def test_broken_zip(tmp_path, tiny):
    place = packings(tmp_path / "sources")["outer zip"]
    data = bytearray(place.read_bytes())
    data[100:400] = bytes(300)
    place.write_bytes(data)
    fails(tmp_path, place, "not a readable archive")


def test_another_archive(tmp_path, tiny):
    archive = write_tar(tmp_path / "x.tar.gz", FILES, prefix="256_ObjectCategories")
    fails(tmp_path, archive, "contains no known format of")
    other = {name.replace("beta", "delta"): data for name, data in FILES.items()}
    fails(tmp_path, write_tar(tmp_path / "y.tar.gz", other), "'delta'", "another set")


def test_missing_class(tmp_path, tiny):
    files = {name: data for name, data in FILES.items() if not name.startswith("beta")}
    fails(tmp_path, write_tar(tmp_path / ARCHIVE, files), "'beta'", "missing")


def test_too_small_class(tmp_path, tiny):
    files = {name: data for name, data in FILES.items() if not (name.startswith("beta") and name > "beta/image_0005")}
    fails(tmp_path, write_tar(tmp_path / ARCHIVE, files), "'beta' has 4 images", "at least 6")


def test_one_image_too_few(tmp_path, tiny):
    files = dict(FILES)
    files.popitem()
    fails(
        tmp_path, write_tar(tmp_path / ARCHIVE, files), f"{sum(SIZES) - PER_CLASS * len(SIZES) - 1} images for test.txt"
    )


def test_repeated_image(tmp_path, tiny):
    files = {**FILES, "beta/IMAGE_0001.JPG": jpeg(999)}
    fails(tmp_path, write_tar(tmp_path / ARCHIVE, files), "twice")


@pytest.mark.parametrize(
    ("damage", "part"), [(b"<html></html>", "cannot be decoded"), (b"", "is empty"), (None, "cannot be decoded")]
)
def test_unreadable_image(tmp_path, source, tiny, damage, part):
    manifest = layout.read_manifest(prepare_dataset("caltech101", source, tmp_path / "first"))
    assert manifest is not None
    for path in ("images/train800/000000.jpg", "images/val200/000002.jpg", "images/test/000009.jpg"):
        name = manifest.files[path].source
        files = {**FILES, name: FILES[name][:-40] if damage is None else damage}
        fails(tmp_path, write_tar(tmp_path / ARCHIVE, files), name, part)


def test_the_same_image_in_two_lists(tmp_path, source, tiny):
    manifest = layout.read_manifest(prepare_dataset("caltech101", source, tmp_path / "first"))
    assert manifest is not None
    name, other = (manifest.files[f"images/{split}/000000.jpg"].source for split in ("train800", "test"))
    prepare_dataset("caltech101", write_tar(tmp_path / ARCHIVE, {**FILES, other: FILES[name]}), tmp_path / "root")
    found = verify_dataset("caltech101", tmp_path / "root")
    assert all(problem.note for problem in found)  # published sets have such images; they are named, not refused
    assert any(p.file == "test.txt" and "is the same image as images/train800/000000.jpg" in p.what for p in found)


def test_root_that_cannot_be_a_folder(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot write caltech101 to .*file"):
        prepare_dataset("caltech101", source, tmp_path / "file")


def test_place_taken_by_another_tools_folder(tmp_path, source):
    target = tmp_path / "root" / "caltech101"
    target.mkdir(parents=True)
    (target / "train800.txt").write_text("images/train800/000000.jpg 1\n")
    with pytest.raises(InputError, match="not made by this command"):
        prepare_dataset("caltech101", source, tmp_path / "root")
    assert [p.name for p in target.iterdir()] == ["train800.txt"]


def test_place_taken_by_other_images(tmp_path, prepared):
    manifest = layout.read_manifest(prepared)
    assert manifest is not None
    name = manifest.files["images/test/000000.jpg"].source
    other = write_tar(tmp_path / ARCHIVE, {**FILES, name: jpeg(12345)})
    before = (prepared / layout.MANIFEST).read_bytes()
    with pytest.raises(InputError, match="prepared from other images"):
        prepare_dataset("caltech101", other, tmp_path / "root")
    assert (prepared / layout.MANIFEST).read_bytes() == before


def test_place_taken_by_a_damaged_folder(tmp_path, prepared, source):
    (prepared / "images/test/000000.jpg").unlink()
    with pytest.raises(InputError, match=r"damaged.*test\.txt:1.*delete it"):
        prepare_dataset("caltech101", source, tmp_path / "root")


def test_two_at_once(tmp_path, source):
    root = tmp_path / "root"
    root.mkdir()
    with reserved(root / "caltech101") as held, reserved(root / "dtd") as other:
        assert held and other  # another dataset may be prepared meanwhile
        with reserved(root / "caltech101") as again:
            assert not again
        with pytest.raises(InputError, match="Another process is preparing caltech101"):
            prepare_dataset("caltech101", source, root)
    assert list(root.iterdir()) == []
    with pytest.raises(FileNotFoundError), reserved(root / "caltech101"):
        raise FileNotFoundError("is passed on")
    prepare_dataset("caltech101", source, root)
    assert [path.name for path in root.iterdir()] == ["caltech101"]

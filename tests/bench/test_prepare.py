"""Preparing and verifying: whole or not at all, and every problem named."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from s2a_bench import datasets, layout, splits
from s2a_bench import prepare as prepare_module
from s2a_bench.config import DataConfig
from s2a_bench.data import check, list_datasets
from s2a_bench.dataset_types import VTAB_LISTS, Pool
from s2a_bench.datasets import DATASETS, Counts
from s2a_bench.errors import InputError
from s2a_bench.prepare import prepare
from s2a_bench.sources.items import Item, Source
from s2a_bench.verify import Problem, verify

FOLDER = "101_ObjectCategories"
ARCHIVE = f"{FOLDER}.tar.gz"
NAMES = ("Alpha", "beta", "Gamma_x")
PER_CLASS, SIZES = 6, (9, 11, 8)
TINY_COUNTS = Counts(8, 3, 11, sum(SIZES) - PER_CLASS * len(SIZES))


def jpeg(seed: int, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    shape = (size[1], size[0]) + {"RGB": (3,), "L": (), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, "JPEG")
    return out.getvalue()


def source_files(names, sizes) -> dict[str, bytes]:
    """``"<class>/<file>"`` to content, with a grey and a CMYK image among them."""
    files, seed = {}, 0
    for name, size in zip(names, sizes, strict=True):
        for i in range(1, size + 1):
            seed += 1
            files[f"{name}/image_{i:04d}.jpg"] = jpeg(seed, {1: "L", 2: "CMYK"}.get(seed, "RGB"), (8 + seed % 3, 8))
    return files


def write_tar(path: Path, files: dict[str, bytes], prefix: str = FOLDER, extra: bool = True) -> Path:
    junk = {"BACKGROUND_Google/tmp": b"", ".DS_Store": b"x", "beta/Thumbs.db": b"x", "beta/._image_0001.jpg": b"x"}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {**files, **(junk if extra else {})}.items():
            info = tarfile.TarInfo(f"{prefix}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


FILES = source_files(NAMES, SIZES)


def wrong(root: Path) -> list[Problem]:
    """What ``verify`` finds, without its notes (the grey image, the CMYK one)."""
    return [problem for problem in verify("caltech101", root) if not problem.note]


@pytest.fixture
def tiny(monkeypatch):
    """Caltech101's row cut down to three classes, so that a test takes milliseconds."""
    row = DATASETS["caltech101"]
    assert row.recipe is not None
    recipe = dataclasses.replace(
        row.recipe, class_names=tuple(sorted(n.lower() for n in NAMES)), rule=Pool(PER_CLASS, (0, 8), (14, 17))
    )
    small = dataclasses.replace(row, classes=3, counts=TINY_COUNTS, recipe=recipe)
    monkeypatch.setitem(DATASETS, "caltech101", small)
    return small


@pytest.fixture
def source(tmp_path, tiny) -> Path:
    folder = tmp_path / "download"
    folder.mkdir()
    return write_tar(folder / ARCHIVE, FILES)


@pytest.fixture
def prepared(tmp_path, source) -> Path:
    return prepare("caltech101", source, tmp_path / "root")


def entries(folder: Path, name: str) -> list[tuple[str, int]]:
    lines = (folder / f"{name}.txt").read_text().splitlines()
    return [(path, int(label)) for path, label in (line.split(" ") for line in lines)]


def nothing_there(root: Path) -> bool:
    """No dataset, no left-over, nothing that loads."""
    with pytest.raises(InputError, match="was not found"):
        check(DataConfig("vtab", "caltech101", str(root)))
    return not root.exists() or not list(root.iterdir())


# --- Good input ------------------------------------------------------------------------------------------------------


def test_caltech_of_full_width(tmp_path, monkeypatch):
    """All 102 classes and the real recipe, with few and tiny images."""
    row = DATASETS["caltech101"]
    assert row.recipe is not None
    shown = {"background_google": "BACKGROUND_Google", "faces": "Faces", "leopards": "Leopards"}
    names = [shown.get(name, name) for name in row.recipe.class_names]
    random.Random(0).shuffle(names)
    sizes = [31 + i % 3 for i in range(102)]
    files = source_files(names, sizes)
    counts = Counts(800, 200, 1000, sum(sizes) - 30 * 102)
    monkeypatch.setitem(DATASETS, "caltech101", dataclasses.replace(row, counts=counts))
    folder = prepare("caltech101", write_tar(tmp_path / ARCHIVE, files), tmp_path / "root")
    assert wrong(tmp_path / "root") == []

    lists = {name: entries(folder, name) for name in VTAB_LISTS}
    assert {name: len(each) for name, each in lists.items()} == dict(zip(VTAB_LISTS, counts, strict=True))
    assert lists["train800val200"] == lists["train800"] + lists["val200"]
    by_content = {data: name for name, data in files.items()}
    for name in ("train800", "val200", "test"):
        for i, (path, label) in enumerate(lists[name]):
            assert path == f"images/{name}/{i:06d}.jpg"
            origin = by_content.pop((folder / path).read_bytes())  # the original bytes, each image once
            assert row.recipe.class_names[label] == origin.split("/")[0].lower()
    per_class = Counter(name.split("/")[0] for name in by_content.values())  # the rest of the pool, in no list
    assert sum(per_class.values()) == 30 * 102 - 1000
    in_test = Counter(label for _, label in lists["test"])
    expected = {row.recipe.class_names.index(n.lower()): size - 30 for n, size in zip(names, sizes, strict=True)}
    assert in_test == expected

    manifest = layout.read_manifest(folder)
    assert manifest is not None and manifest.split_id.startswith("s2a-seed") and not manifest.lossy
    assert manifest.classes == row.recipe.class_names and manifest.counts == dict(zip(VTAB_LISTS, counts, strict=True))
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
        folder = prepare("caltech101", place, tmp_path / name)
        manifest = layout.read_manifest(folder)
        assert manifest is not None
        files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        seen.add(str((sorted((p, d) for p, d in files.items() if p.name != layout.MANIFEST), manifest.source_id)))
    assert len(seen) == 1


def test_again_is_a_no_op_that_says_so(tmp_path, prepared, source):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in prepared.rglob("*")}
    told = []
    assert prepare("caltech101", source.parent, tmp_path / "root", lambda *args: told.append(args)) == prepared
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in prepared.rglob("*")} == before
    assert "already prepared" in told[-1][0]


def test_progress_counts_up_to_its_total(tmp_path, source):
    told: dict[str, list[tuple[int, int]]] = {}
    prepare(
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
    assert wrong(prepare("caltech101", source, tmp_path / "root").parent) == []


def test_images_are_readable_by_others(prepared):
    assert prepared.stat().st_mode & 0o055 == 0o055


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_the_source(tiny, order):
    items = items_of(tiny)
    shuffled = list(items)
    order.shuffle(shuffled)
    assert chosen(tiny, shuffled) == chosen(tiny, items)


def items_of(row) -> list[Item]:
    labels = {name: i for i, name in enumerate(row.recipe.class_names)}
    return [Item(name, labels[name.split("/")[0].lower()]) for name in FILES]


def chosen(row, items, **recipe) -> dict[str, tuple[Item, ...]]:
    source = Source(tuple(items), row.recipe.class_names, lambda names: iter(()))
    return dict(splits.choose(row, dataclasses.replace(row.recipe, **recipe), source).lists)


def test_another_seed_chooses_other_images(tiny):
    first, second = (chosen(tiny, items_of(tiny), seed=seed) for seed in (0, 1))
    assert {item.name for item in first["test"]} != {item.name for item in second["test"]}


# --- Bad input: one sentence, nothing left behind --------------------------------------------------------------------


def fails(tmp_path: Path, source: Path, *parts: str) -> None:
    root = tmp_path / "root"
    with pytest.raises(InputError) as error:
        prepare("caltech101", source, root)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert nothing_there(root)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("calltech", "did you mean caltech101"),
        ("svhn", "holds nothing that is known of svhn"),
        ("digits", "embedded"),
    ],
)
def test_datasets_that_cannot_be_prepared(tmp_path, name, part):
    with pytest.raises(InputError, match="(?i)" + part.replace("(", r"\(")):
        prepare(name, tmp_path, tmp_path / "root")


def test_no_source(tmp_path, tiny):
    fails(tmp_path, tmp_path / "nowhere", "nowhere does not exist", ARCHIVE)
    (tmp_path / "empty").mkdir()
    fails(tmp_path, tmp_path / "empty", "holds nothing that is known of caltech101", ARCHIVE)


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
    fails(tmp_path, write_tar(tmp_path / "x.tar.gz", FILES, prefix="256_ObjectCategories"), "nothing that is known of")
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
    manifest = layout.read_manifest(prepare("caltech101", source, tmp_path / "first"))
    assert manifest is not None
    for path in ("images/train800/000000.jpg", "images/val200/000002.jpg", "images/test/000009.jpg"):
        name = manifest.files[path].source
        files = {**FILES, name: FILES[name][:-40] if damage is None else damage}
        fails(tmp_path, write_tar(tmp_path / ARCHIVE, files), name, part)


def test_the_same_image_in_two_lists(tmp_path, source, tiny):
    manifest = layout.read_manifest(prepare("caltech101", source, tmp_path / "first"))
    assert manifest is not None
    name, other = (manifest.files[f"images/{split}/000000.jpg"].source for split in ("train800", "test"))
    prepare("caltech101", write_tar(tmp_path / ARCHIVE, {**FILES, other: FILES[name]}), tmp_path / "root")
    found = verify("caltech101", tmp_path / "root")
    assert all(problem.note for problem in found)  # published sets have such images; they are named, not refused
    assert any(p.file == "test.txt" and "is the same image as images/train800/000000.jpg" in p.what for p in found)


def test_root_that_cannot_be_a_folder(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot write caltech101 to .*file"):
        prepare("caltech101", source, tmp_path / "file")


def test_place_taken_by_another_tools_folder(tmp_path, source):
    target = tmp_path / "root" / "caltech101"
    target.mkdir(parents=True)
    (target / "train800.txt").write_text("images/train800/000000.jpg 1\n")
    with pytest.raises(InputError, match="not made by this command"):
        prepare("caltech101", source, tmp_path / "root")
    assert [p.name for p in target.iterdir()] == ["train800.txt"]


def test_place_taken_by_other_images(tmp_path, prepared):
    manifest = layout.read_manifest(prepared)
    assert manifest is not None
    name = manifest.files["images/test/000000.jpg"].source
    other = write_tar(tmp_path / ARCHIVE, {**FILES, name: jpeg(12345)})
    before = (prepared / layout.MANIFEST).read_bytes()
    with pytest.raises(InputError, match="prepared from other images"):
        prepare("caltech101", other, tmp_path / "root")
    assert (prepared / layout.MANIFEST).read_bytes() == before


def test_place_taken_by_a_damaged_folder(tmp_path, prepared, source):
    (prepared / "images/test/000000.jpg").unlink()
    with pytest.raises(InputError, match=r"damaged.*test\.txt:1.*delete it"):
        prepare("caltech101", source, tmp_path / "root")


def test_two_at_once(tmp_path, source):
    root = tmp_path / "root"
    root.mkdir()
    with layout.reserved(root / "caltech101") as held, layout.reserved(root / "dtd") as other:
        assert held and other  # another dataset may be prepared meanwhile
        with layout.reserved(root / "caltech101") as again:
            assert not again
        with pytest.raises(InputError, match="Another process is preparing caltech101"):
            prepare("caltech101", source, root)
    assert list(root.iterdir()) == []
    with pytest.raises(FileNotFoundError), layout.reserved(root / "caltech101"):
        raise FileNotFoundError("is passed on")
    prepare("caltech101", source, root)
    assert [path.name for path in root.iterdir()] == ["caltech101"]


def test_a_race_for_one_place_has_one_winner_at_a_time(tmp_path):
    """Many processes reserve, count up in a file without any atomicity, and let go: no count is lost."""
    count = tmp_path / "count"
    count.write_text("0")
    code = (
        "import sys, time; from pathlib import Path; from s2a_bench.layout import reserved\n"
        "count = Path(sys.argv[1]); done = 0\n"
        "while done < 30:\n"
        "    with reserved(count) as held:\n"
        "        if held: value = int(count.read_text()); count.write_text(str(value + 1)); done += 1\n"
    )
    racers = [subprocess.Popen([sys.executable, "-c", code, str(count)]) for _ in range(4)]
    assert [racer.wait(60) for racer in racers] == [0] * 4
    assert count.read_text() == "120"


# --- Killed in the middle --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["_put_down", "_check_counts", "_manifest", "verify_folder", "_flush"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_in_the_middle_leaves_nothing(tmp_path, source, monkeypatch, stage, error):
    original = getattr(prepare_module, stage)

    def fail(*args, **kwargs):
        original(*args, **kwargs)
        raise error("injected")

    monkeypatch.setattr(prepare_module, stage, fail)
    with pytest.raises(InputError if error is OSError else error, match="injected"):
        prepare("caltech101", source, tmp_path / "root")
    if stage == "_flush":  # it has its name already: whole
        assert wrong(tmp_path / "root") == []
    else:
        assert nothing_there(tmp_path / "root")


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
from s2a_bench.datasets import DATASETS, Counts
from s2a_bench.prepare import prepare

from s2a_bench.dataset_types import Pool
names, per_class, counts, source, root, stage, at = eval(sys.argv[1])
row = DATASETS["caltech101"]
recipe = dataclasses.replace(row.recipe, class_names=names, rule=Pool(per_class, (0, 8), (14, 17)))
DATASETS["caltech101"] = dataclasses.replace(row, classes=3, counts=Counts(*counts), recipe=recipe)

def progress(what, done, total):
    if what == stage and done == at:
        os.kill(os.getpid(), signal.SIGKILL)

prepare("caltech101", Path(source), Path(root), progress)
"""


@pytest.mark.parametrize(("stage", "at"), [("reading the source", 10), ("writing to disk", 0)])
def test_a_killed_process_leaves_nothing_that_loads(tmp_path, source, tiny, stage, at):
    root = tmp_path / "root"
    names = tuple(tiny.recipe.class_names)
    args = repr((names, PER_CLASS, tuple(TINY_COUNTS), str(source), str(root), stage, at))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, args], env=env, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not nothing_there(root)  # its temporary folder is still there, and is not a dataset
    prepare("caltech101", source, root)
    assert wrong(root) == []
    assert [path.name for path in root.iterdir()] == ["caltech101"]  # the stale one is gone


# --- Verify ----------------------------------------------------------------------------------------------------------


def test_a_prepared_folder_has_no_problems(tmp_path, prepared):
    assert wrong(tmp_path / "root") == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def break_manifest(folder: Path, **changes) -> None:
    values = json.loads((folder / layout.MANIFEST).read_text())
    (folder / layout.MANIFEST).write_text(json.dumps({**values, **changes}))


TAMPERING = {
    "changed image": (lambda f: flip(f / "images/test/000004.jpg"), "test.txt:5", "images/test/000004.jpg"),
    "missing image": (lambda f: (f / "images/val200/000001.jpg").unlink(), "val200.txt:2", "cannot be read"),
    "broken image": (lambda f: (f / "images/test/000000.jpg").write_bytes(b"x"), "test.txt:1", "cannot be decoded"),
    "swapped images": (
        lambda f: shutil.copy(f / "images/test/000001.jpg", f / "images/train800/000000.jpg"),
        "test.txt:2",
        "same image as images/train800/000000.jpg",
    ),
    "missing list": (lambda f: (f / "val200.txt").unlink(), "val200.txt", "cannot be read"),
    "bad line": (lambda f: edit(f / "test.txt", "000002.jpg ", "000002.jpg;"), "test.txt:3", "is not of the form"),
    "label out of range": (lambda f: append(f, "images/test/000000.jpg 3"), "test.txt:", "label 3 is out of range"),
    "repeated line": (lambda f: append(f, "images/test/000000.jpg 1"), "test.txt:", "already listed on line 1"),
    "outside path": (lambda f: append(f, "../../x.jpg 1"), "test.txt:", "not a plain path"),
    "not text": (lambda f: (f / "test.txt").write_bytes(b"\xff\xfe"), "test.txt", "is not text"),
    "extra image": (
        lambda f: (f / "images/test/999999.jpg").write_bytes(jpeg(1)),
        "images/test/999999.jpg",
        "was not prepared",
    ),
    "broken manifest": (lambda f: (f / layout.MANIFEST).write_text("{"), "manifest.json", "cannot be used"),
    "wrong data_id": (lambda f: break_manifest(f, data_id="0" * 16), "manifest.json", "data_id"),
    "another's manifest": (lambda f: break_manifest(f, dataset="svhn"), "manifest.json", "describes 'svhn'"),
}


def append(folder: Path, line: str) -> None:
    with (folder / "test.txt").open("a") as file:
        file.write(line + "\n")


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_is_found_and_named(tmp_path, prepared, case):
    tamper, where, what = TAMPERING[case]
    tamper(prepared)
    problems = verify("caltech101", tmp_path / "root")
    assert any(str(problem).startswith(where) and what in problem.what for problem in problems), problems


def test_a_changed_label_is_found_with_and_without_manifest(tmp_path, prepared):
    path, label = entries(prepared, "train800")[3]
    edit(prepared / "train800.txt", f"{path} {label}\n", f"{path} {(label + 1) % 3}\n")
    assert any("its hash differs" in p.what and p.file == "train800.txt" for p in verify("caltech101", prepared.parent))
    (prepared / layout.MANIFEST).unlink()
    problems = verify("caltech101", prepared.parent)
    assert (
        Problem("train800val200.txt", 4, f"{path} with label {label} is in neither train800.txt nor val200.txt")
        in problems
    )


def test_every_problem_is_listed_not_the_first(tmp_path, prepared):
    for i in range(3):
        flip(prepared / f"images/test/{i:06d}.jpg")
    changed = [p for p in verify("caltech101", prepared.parent) if "was changed" in p.what]
    assert [(p.file, p.line) for p in changed] == [("test.txt", i + 1) for i in range(3)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path, prepared, data):
    files = sorted(p for p in prepared.rglob("*") if p.is_file() and p.name != layout.MANIFEST)
    path = data.draw(st.sampled_from(files))
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        assert wrong(prepared.parent)
    finally:
        path.write_bytes(original)
    assert wrong(prepared.parent) == []


def test_verify_without_data(tmp_path):
    with pytest.raises(InputError, match="data prepare caltech101"):
        verify("caltech101", tmp_path)
    with pytest.raises(InputError, match="embedded"):
        verify("digits", tmp_path)


# --- Listing ---------------------------------------------------------------------------------------------------------


def test_list_says_what_is_there(tmp_path, prepared):
    rows = {row.name: row for row in list_datasets(tmp_path / "root")}
    assert list(rows) == list(datasets.DATASETS)
    manifest = layout.read_manifest(prepared)
    assert manifest is not None
    row = rows["caltech101"]
    assert row.present and row.prepared and (row.data_id, row.split_id) == (manifest.data_id, manifest.split_id)
    assert row.where == str(prepared)
    assert rows["digits"].present and not rows["svhn"].present and rows["svhn"].data_id is None
    assert [row.present for row in list_datasets(None)] == [d.embedded for d in DATASETS.values()]


def test_list_survives_a_broken_manifest(tmp_path, prepared):
    (prepared / layout.MANIFEST).write_text("{")
    assert not {row.name: row for row in list_datasets(tmp_path / "root")}["caltech101"].present

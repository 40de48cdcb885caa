"""What a cell gets: the right images, as the backbone wants them, and nothing from the test set before its time."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from s2a_bench import data, decoded, images, layout, mini_tasks, pretrain
from s2a_bench.config import DataConfig
from s2a_bench.data import check, load
from s2a_bench.dataset_types import VTAB_LISTS, Pool
from s2a_bench.datasets import DATASETS, Counts
from s2a_bench.errors import InputError
from s2a_bench.prepare import prepare

HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SIZES = (6, 3, 9, 7)
COUNTS = Counts(*SIZES)


def picture(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_vtab(folder: Path, suffix: str = ".png", width: int = 8, height: int = 8) -> dict[str, Image.Image]:
    """A folder as other tools write it: copies for train800val200, no manifest."""
    seed, written = 0, {}
    for name, n in zip(VTAB_LISTS, SIZES, strict=True):
        (folder / "images" / name).mkdir(parents=True)
        lines = []
        if name == "train800val200":
            seed = 0
        for i in range(n):
            seed += 1
            path = f"images/{name}/{i:06d}{suffix}"
            written[path] = picture(seed, width, height)
            written[path].save(folder / path)
            lines.append(f"{path} {seed % 3}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return written


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """A small folder of another tool under the name of a VTAB task."""
    monkeypatch.setitem(DATASETS, "svhn", dataclasses.replace(DATASETS["svhn"], counts=COUNTS))
    written = write_vtab(tmp_path / "root" / "svhn")
    return tmp_path / "root" / "svhn", written


@pytest.fixture
def caltech(tmp_path, monkeypatch):
    """A small folder made by ``prepare``, with images of several sizes."""
    row = DATASETS["caltech101"]
    assert row.recipe is not None
    recipe = dataclasses.replace(row.recipe, class_names=("ant", "bee", "cat"), rule=Pool(4, (0, 6), (9, 12)))
    monkeypatch.setitem(DATASETS, "caltech101", dataclasses.replace(row, classes=3, counts=COUNTS, recipe=recipe))
    source = tmp_path / recipe.folder
    for label, name in enumerate(recipe.class_names):
        (source / name).mkdir(parents=True)
        for i in range(7 if label == 0 else 6):
            picture(100 * label + i, 8 + i, 12 - i).save(source / name / f"image_{i:04d}.jpg")
    return prepare("caltech101", source, tmp_path / "root")


def config(folder: Path, **changes) -> DataConfig:
    return DataConfig("vtab", folder.name, str(folder.parent), **changes)


def all_of(part: data.Images) -> torch.Tensor:
    return part.batch(torch.arange(len(part)))


def expected(picture: Image.Image, size: int, mean=HALF["mean"], std=HALF["std"], filter=Image.Resampling.BICUBIC):
    """Pillow and numpy, one image at a time."""
    rgb = picture.convert("RGB")
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), filter)
    return torch.from_numpy(((np.asarray(rgb) / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)).float()


# --- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 5, 16])
@pytest.mark.parametrize("evaluate", ["test", "val"])
def test_images_and_labels_are_those_of_the_lists(svhn, size, evaluate):
    folder, written = svhn
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    task = load(config(folder, evaluate=evaluate), size=size, mean=mean, std=std)
    names = ("train800val200", "test") if evaluate == "test" else ("train800", "val200")
    for part, name in zip((task.train, task.scored), names, strict=True):
        lines = [line.split() for line in (folder / f"{name}.txt").read_text().splitlines()]
        assert len(part) == SIZES[VTAB_LISTS.index(name)]
        assert part.labels.dtype == torch.int64 and part.labels.tolist() == [int(label) for _, label in lines]
        got = all_of(part)
        assert got.dtype == torch.float32
        want = torch.stack([expected(written[path], size, mean, std) for path, _ in lines])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert task.data_config == {"size": size, "mean": mean, "std": std, "interpolation": "bicubic", "resize": "direct"}
    assert task.classes == 10  # of the table: these lists know three
    assert not task.synthetic


def test_interpolation_is_the_one_asked_for(svhn):
    folder, written = svhn
    for name, filter in (("bilinear", Image.Resampling.BILINEAR), ("nearest", Image.Resampling.NEAREST)):
        task = load(config(folder), size=5, interpolation=name, **HALF)
        torch.testing.assert_close(
            all_of(task.train)[0], expected(written["images/train800/000000.png"], 5, filter=filter)
        )


def test_batches_follow_their_indices(svhn):
    task = load(config(svhn[0]), size=8, **HALF)
    for part in (task.train, task.scored):
        full = all_of(part)
        for indices in ([2, 0, 2], [], [6]):
            index = torch.tensor(indices, dtype=torch.int64)
            torch.testing.assert_close(part.batch(index), full[index], rtol=0, atol=0)
        assert part.batch(torch.arange(0)).shape == (0, 3, 8, 8)
        with pytest.raises(IndexError):
            part.batch(torch.tensor([99]))


def test_greyscale_cmyk_and_palette_images_become_rgb(svhn):
    folder, written = svhn
    for i, mode in enumerate(("L", "P", "1")):
        path = folder / f"images/train800val200/{i:06d}.png"
        written["images/train800val200/000000.png"].convert(mode).save(path)
        task = load(config(folder), size=8, **HALF)
        torch.testing.assert_close(all_of(task.train)[i], expected(Image.open(path), 8))


def test_prepared_folder(caltech):
    task = load(config(caltech), size=10, **HALF)
    manifest = layout.read_manifest(caltech)
    assert manifest is not None
    assert (task.data_id, task.split_id, task.lossy) == (manifest.data_id, manifest.split_id, False)
    assert check(config(caltech)) == (task.data_id, task.split_id)
    for part, name in ((task.train, "train800val200"), (task.scored, "test")):
        lines = [line.split() for line in (caltech / f"{name}.txt").read_text().splitlines()]
        want = torch.stack([expected(Image.open(caltech / path), 10) for path, _ in lines])
        torch.testing.assert_close(all_of(part), want)
        assert part.labels.tolist() == [int(label) for _, label in lines]


def test_folder_under_an_alias(svhn):
    folder, _ = svhn
    folder.rename(folder.parent / "svhn_cropped")
    assert load(config(folder), size=8, **HALF).dataset.name == "svhn"
    assert load(DataConfig("vtab", "svhn_cropped", str(folder.parent)), size=8, **HALF).dataset.name == "svhn"


# --- The test set is out of reach ------------------------------------------------------------------------------------


def without_test(folder: Path) -> None:
    (folder / "test.txt").unlink()
    (folder / "train800val200.txt").unlink()
    shutil.rmtree(folder / "images/test")
    shutil.rmtree(folder / "images/train800val200", ignore_errors=True)


@pytest.mark.parametrize("which", ["svhn", "caltech"])
def test_val_opens_no_test_image(which, request):
    made = request.getfixturevalue(which)
    folder = made[0] if which == "svhn" else made
    before = load(config(folder, evaluate="val"), size=8, **HALF)
    shutil.rmtree(folder / layout.CACHE, ignore_errors=True)
    without_test(folder)
    after = load(config(folder, evaluate="val"), size=8, **HALF)
    assert check(config(folder, evaluate="val")) == (after.data_id, after.split_id) == (before.data_id, before.split_id)
    for part in ("train", "scored"):
        torch.testing.assert_close(all_of(getattr(after, part)), all_of(getattr(before, part)), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"train800val200\.txt cannot be read"):
        load(config(folder), size=8, **HALF)


def test_val_scores_no_training_image(svhn, caltech):
    for folder in (svhn[0], caltech):
        task = load(config(folder, evaluate="val"), size=8, **HALF)
        distance = torch.cdist(all_of(task.train).flatten(1), all_of(task.scored).flatten(1))
        assert distance.min() > 1


def test_test_images_are_not_read_before_they_are_scored(svhn):
    folder, _ = svhn
    (folder / "images/test/000003.png").write_bytes(b"not an image")
    task = load(config(folder, limit_test=6), size=5, **HALF)
    assert task.scored.batch(torch.tensor([0])).shape == (1, 3, 5, 5)
    with pytest.raises(InputError, match=r"000003\.png cannot be decoded"):
        all_of(task.scored)


def test_a_scored_image_that_is_trained_on_is_refused(svhn):
    folder, _ = svhn
    lines = (folder / "test.txt").read_text().splitlines()
    lines[2] = "images/train800val200/000001.png 1"
    (folder / "test.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match="in a training list and in a scored one"):
        check(config(folder))


# --- Limits ----------------------------------------------------------------------------------------------------------


@given(n=st.integers(0, 5000), limit=st.none() | st.integers(1, 6000))
def test_limits_keep_evenly_spaced_entries(n, limit):
    kept = data._spaced_indices(n, limit)
    assert len(kept) == (n if limit is None else min(n, limit))
    if len(kept):
        assert kept[0] == 0 and kept[-1] < n
        gaps = np.diff(np.append(kept, n))
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("which", ["mini", "svhn"])
def test_limits_take_images_with_their_labels(which, svhn):
    base = DataConfig("mini", "location") if which == "mini" else config(svhn[0])
    size = 32 if which == "mini" else 8
    full = load(base, size=size, **HALF)
    few = load(dataclasses.replace(base, limit_train=4, limit_test=3), size=size, **HALF)
    assert few.data_id == full.data_id
    for part, k in (("train", 4), ("scored", 3)):
        some, every = getattr(few, part), getattr(full, part)
        index = torch.arange(k) * len(every) // k
        assert some.labels.tolist() == every.labels[index].tolist()
        torch.testing.assert_close(all_of(some), every.batch(index), rtol=0, atol=0)


# --- Identity --------------------------------------------------------------------------------------------------------


def test_id_follows_every_listed_byte(svhn):
    folder, _ = svhn
    first = check(config(folder))
    assert check(config(folder)) == first
    path = folder / "images/test/000001.png"
    original = path.read_bytes()
    picture(77).save(path)
    changed = check(config(folder))
    assert changed[0] != first[0] and changed[1] == first[1]
    path.write_bytes(original)
    assert check(config(folder)) == first
    text = (folder / "test.txt").read_text()
    (folder / "test.txt").write_text(
        text.replace("000002.png 1", "000002.png 2").replace("000002.png 0", "000002.png 1")
    )
    relabelled = check(config(folder))
    assert relabelled[0] != first[0] and relabelled[1] != first[1]


def test_id_does_not_depend_on_the_place_or_the_cache(svhn, tmp_path):
    folder, _ = svhn
    first = check(config(folder))
    assert list((folder / layout.CACHE).glob("identity-*.json"))
    shutil.copytree(folder, tmp_path / "elsewhere" / "svhn", ignore=shutil.ignore_patterns(layout.CACHE))
    assert check(config(tmp_path / "elsewhere" / "svhn")) == first
    for cached in (folder / layout.CACHE).glob("identity-*.json"):
        cached.write_text("{")
    assert check(config(folder)) == first


def test_check_hashes_a_folder_once_and_decodes_nothing(svhn, monkeypatch):
    monkeypatch.setattr(images, "decode", None)
    monkeypatch.setattr(decoded, "decode", None)
    first = check(config(svhn[0]))
    monkeypatch.setattr(layout, "read_bytes", None)
    assert check(config(svhn[0])) == first


def test_jpegs_of_unknown_origin_count_as_lossy(svhn, tmp_path):
    folder, _ = svhn
    assert not load(config(folder), size=8, **HALF).lossy
    shutil.rmtree(folder)
    write_vtab(folder, suffix=".jpg")
    assert load(config(folder), size=8, **HALF).lossy


@pytest.mark.parametrize("split", ["train800", "test"])
def test_a_changed_image_of_a_prepared_folder_is_refused(caltech, split):
    path = caltech / f"images/{split}/000000.jpg"
    changed = bytearray(path.read_bytes())
    changed[-3] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError, match="was changed after it was prepared"):
        task = load(config(caltech), size=8, **HALF)
        all_of(task.scored if split == "test" else task.train)
    path.write_bytes(changed[:-1])
    with pytest.raises(InputError, match="not what was prepared"):
        check(config(caltech))


def test_a_changed_list_of_a_prepared_folder_is_refused(caltech):
    text = (caltech / "test.txt").read_text().splitlines()
    (caltech / "test.txt").write_text("\n".join(text[::-1]) + "\n")
    with pytest.raises(InputError, match=r"test\.txt was changed after it was prepared"):
        check(config(caltech))


# --- The decoded cache -----------------------------------------------------------------------------------------------


def cached_arrays(folder: Path) -> list[Path]:
    return sorted((folder / layout.CACHE).glob("*.u8"))


def test_full_test_lists_are_decoded_once(caltech, monkeypatch):
    first = all_of(load(config(caltech), size=9, **HALF).scored)
    assert len(cached_arrays(caltech)) == 1
    opened = []
    monkeypatch.setattr(decoded, "decode", lambda content, name: opened.append(name) or images.decode(content, name))
    task = load(config(caltech), size=9, **HALF)
    torch.testing.assert_close(all_of(task.scored), first, rtol=0, atol=0)
    assert not any("images/test/" in name for name in opened)


def test_each_view_has_its_own_cache(caltech):
    for view in ({"size": 9}, {"size": 7}, {"size": 9, "interpolation": "bilinear"}):
        all_of(load(config(caltech), **view, **HALF).scored)
    assert len(cached_arrays(caltech)) == 3
    load(config(caltech, limit_test=2), size=11, **HALF)
    load(config(caltech, evaluate="val"), size=11, **HALF)
    assert len(cached_arrays(caltech)) == 3


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"garbage" * 99, None])
def test_a_broken_cache_is_made_again(caltech, content):
    first = all_of(load(config(caltech), size=9, **HALF).scored)
    (path,) = cached_arrays(caltech)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] if content is None else content)
    torch.testing.assert_close(all_of(load(config(caltech), size=9, **HALF).scored), first, rtol=0, atol=0)
    assert path.read_bytes() == whole


def test_an_error_while_decoding_leaves_no_cache(caltech):
    (caltech / "images/test/000006.jpg").rename(caltech / "gone")
    shutil.copy(caltech / "images/test/000005.jpg", caltech / "images/test/000006.jpg")
    size = (caltech / "gone").stat().st_size
    copy = caltech / "images/test/000006.jpg"
    copy.write_bytes(copy.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(InputError, match="was changed"):
        all_of(load(config(caltech), size=9, **HALF).scored)
    assert not [path for path in (caltech / layout.CACHE).iterdir() if path.suffix != ".json"]


def test_without_room_images_are_decoded_as_they_are_read(caltech, monkeypatch):
    want = all_of(load(config(caltech), size=9, **HALF).scored)
    shutil.rmtree(caltech / layout.CACHE)
    monkeypatch.setattr(decoded, "CACHE_LIMIT", 10)
    torch.testing.assert_close(all_of(load(config(caltech), size=9, **HALF).scored), want, rtol=0, atol=0)
    assert not cached_arrays(caltech)


def test_a_cache_that_cannot_be_written_is_done_without(svhn):
    folder, _ = svhn
    want = all_of(load(config(folder), size=9, **HALF).scored)
    shutil.rmtree(folder / layout.CACHE)
    (folder / layout.CACHE).write_text("a file where the folder should be")
    torch.testing.assert_close(all_of(load(config(folder), size=9, **HALF).scored), want, rtol=0, atol=0)


FILL = """
import dataclasses, sys, torch
from s2a_bench.config import DataConfig
from s2a_bench.data import load
from s2a_bench.datasets import DATASETS, Counts
root, counts, kill = eval(sys.argv[1])
DATASETS["svhn"] = dataclasses.replace(DATASETS["svhn"], counts=Counts(*counts))
if kill:
    import os, signal
    from s2a_bench import decoded
    original = decoded.decode
    def decode(content, name):
        if "test/000004" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(content, name)
    decoded.decode = decode
task = load(DataConfig("vtab", "svhn", root), size=40, mean=(0.5,) * 3, std=(0.5,) * 3)
print(float(task.scored.batch(torch.arange(len(task.scored))).double().sum()))
"""


def start(folder: Path, kill: bool) -> subprocess.Popen[str]:
    args = repr((str(folder.parent), tuple(COUNTS), kill))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", FILL, args], env=env, stdout=subprocess.PIPE, text=True)


def test_processes_share_a_cache_and_a_killed_one_leaves_none(svhn):
    folder, _ = svhn
    killed = start(folder, kill=True)
    killed.communicate(timeout=120)
    assert killed.returncode == -9
    assert not cached_arrays(folder)
    assert [p for p in (folder / layout.CACHE).iterdir() if p.suffix == ".tmp"]  # it was in the middle of it
    other = start(folder, kill=False)
    mine = float(all_of(load(config(folder), size=40, **HALF).scored).double().sum())
    assert float(other.communicate(timeout=120)[0]) == mine
    assert len(cached_arrays(folder)) == 1
    assert not [p for p in (folder / layout.CACHE).iterdir() if p.suffix == ".tmp"]


# --- Embedded tasks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", mini_tasks.TASKS)
@pytest.mark.parametrize("evaluate", ["test", "val"])
def test_embedded_tasks_at_their_own_size_are_untouched(task, evaluate):
    cell = DataConfig("mini", task, evaluate=evaluate)
    got = load(cell, size=32, **HALF)
    names = ("train800val200", "test") if evaluate == "test" else ("train800", "val200")
    for part, name in zip((got.train, got.scored), names, strict=True):
        pixels, labels = mini_tasks.arrays(task)[name]
        torch.testing.assert_close(all_of(part), torch.from_numpy(pixels.copy()).float() / 255 * 2 - 1)
        assert part.labels.tolist() == labels.tolist()
    assert check(cell) == (got.data_id, got.split_id) == (mini_tasks.data_id(task), got.split_id)
    assert got.synthetic == (task != "digits") and not got.lossy
    assert got.classes == DATASETS[task].classes


def test_embedded_tasks_at_another_size_are_resized():
    task = load(DataConfig("mini", "count", limit_train=5, limit_test=5), size=48, **HALF)
    for part, name in ((task.train, "train800val200"), (task.scored, "test")):
        pixels = mini_tasks.arrays("count")[name][0]
        want = [expected(Image.fromarray(pixels[i * len(pixels) // 5].transpose(1, 2, 0)), 48) for i in range(5)]
        torch.testing.assert_close(all_of(part), torch.stack(want))


def test_a_warm_worker_renders_once(monkeypatch):
    check(DataConfig("mini", "location"))
    monkeypatch.setitem(mini_tasks.RENDERED, "location", (16, None))
    for evaluate in ("test", "val"):
        load(DataConfig("mini", "location", evaluate=evaluate), size=32, **HALF)


def test_changing_a_batch_changes_no_data():
    task = load(DataConfig("mini", "location"), size=32, **HALF)
    first = task.scored.batch(torch.arange(4))
    first.zero_()
    assert task.scored.batch(torch.arange(4)).abs().sum() > 0


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
    for call in (check, lambda c: load(c, size=32, **HALF)):
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
        load(DataConfig(), **{"size": 32, **HALF, **changes})


def test_missing_data_names_path_and_command(tmp_path):
    for make in (lambda: None, lambda: (tmp_path / "caltech101").mkdir()):
        make()
        with pytest.raises(InputError) as error:
            check(config(tmp_path / "caltech101"))
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
}


def rewrite(folder: Path, change) -> None:
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("".join(line + "\n" for line in change(lines)))


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folders_are_found_before_a_sweep_starts(svhn, case):
    folder, _ = svhn
    damage, message = DAMAGE[case]
    damage(folder)
    for call in (check, lambda c: load(c, size=8, **HALF)):
        with pytest.raises(InputError, match=message) as error:
            call(config(folder))
        assert "\n" not in str(error.value)


@settings(max_examples=200)
@given(text=st.text(max_size=60))
def test_lists_of_any_text_give_entries_or_problems(text):
    for item in layout.parse_list(text, classes=5):
        if isinstance(item, layout.Entry):
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
    assert [(item.path, item.label) for item in got if isinstance(item, layout.Entry)] == items


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
        images.decode(content, "x.jpg")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 600), format=st.sampled_from(["PNG", "JPEG", "BMP"]))
def test_truncated_images_are_an_input_error(cut, format):
    out = io.BytesIO()
    picture(3, 16, 16).save(out, format)
    content = out.getvalue()
    try:
        got = images.decode(content[: max(1, len(content) - cut)], "x")
    except InputError:
        return
    # Bytes after the last pixel may go missing unnoticed, pixels may not.
    np.testing.assert_array_equal(np.asarray(got), np.asarray(images.decode(content, "x")))

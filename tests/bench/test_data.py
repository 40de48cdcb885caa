"""What a cell gets: the right images, as the backbone wants them, and nothing from the test set before its time."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.small_folders import HALF, SIZES, all_of, config, expected, picture, write_vtab
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from s2a_bench.config import DataConfig
from s2a_bench.data import decoded, images
from s2a_bench.data import folder as layout
from s2a_bench.data import loading as data
from s2a_bench.data.loading import check_data, load_data
from s2a_bench.data.mini import tasks as mini_tasks
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.table.types import VTAB_LISTS
from s2a_bench.errors import InputError

# --- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 5, 16])
@pytest.mark.parametrize("evaluate", ["test", "val"])
def test_images_and_labels_are_those_of_the_lists(svhn, size, evaluate):
    folder, written = svhn
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    task = load_data(config(folder, evaluate=evaluate), size=size, mean=mean, std=std)
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
        task = load_data(config(folder), size=5, interpolation=name, **HALF)
        torch.testing.assert_close(
            all_of(task.train)[0], expected(written["images/train800/000000.png"], 5, filter=filter)
        )


def test_batches_follow_their_indices(svhn):
    task = load_data(config(svhn[0]), size=8, **HALF)
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
        task = load_data(config(folder), size=8, **HALF)
        torch.testing.assert_close(all_of(task.train)[i], expected(Image.open(path), 8))


def test_prepared_folder(caltech):
    task = load_data(config(caltech), size=10, **HALF)
    manifest = layout.read_manifest(caltech)
    assert manifest is not None
    assert (task.data_id, task.split_id, task.lossy) == (manifest.data_id, manifest.split_id, False)
    assert check_data(config(caltech)) == (task.data_id, task.split_id)
    for part, name in ((task.train, "train800val200"), (task.scored, "test")):
        lines = [line.split() for line in (caltech / f"{name}.txt").read_text().splitlines()]
        want = torch.stack([expected(Image.open(caltech / path), 10) for path, _ in lines])
        torch.testing.assert_close(all_of(part), want)
        assert part.labels.tolist() == [int(label) for _, label in lines]


def test_folder_under_an_alias(svhn):
    folder, _ = svhn
    folder.rename(folder.parent / "svhn_cropped")
    assert load_data(config(folder), size=8, **HALF).dataset.name == "svhn"
    assert load_data(DataConfig("vtab", "svhn_cropped", str(folder.parent)), size=8, **HALF).dataset.name == "svhn"


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
    before = load_data(config(folder, evaluate="val"), size=8, **HALF)
    shutil.rmtree(folder / layout.CACHE, ignore_errors=True)
    without_test(folder)
    after = load_data(config(folder, evaluate="val"), size=8, **HALF)
    assert (
        check_data(config(folder, evaluate="val"))
        == (after.data_id, after.split_id)
        == (before.data_id, before.split_id)
    )
    for part in ("train", "scored"):
        torch.testing.assert_close(all_of(getattr(after, part)), all_of(getattr(before, part)), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"train800val200\.txt cannot be read"):
        load_data(config(folder), size=8, **HALF)


def test_val_scores_no_training_image(svhn, caltech):
    for folder in (svhn[0], caltech):
        task = load_data(config(folder, evaluate="val"), size=8, **HALF)
        distance = torch.cdist(all_of(task.train).flatten(1), all_of(task.scored).flatten(1))
        assert distance.min() > 1


def test_test_images_are_not_read_before_they_are_scored(svhn):
    folder, _ = svhn
    (folder / "images/test/000003.png").write_bytes(b"not an image")
    task = load_data(config(folder, limit_test=6), size=5, **HALF)
    assert task.scored.batch(torch.tensor([0])).shape == (1, 3, 5, 5)
    with pytest.raises(InputError, match=r"000003\.png cannot be decoded"):
        all_of(task.scored)


def test_a_scored_image_that_is_trained_on_is_refused(svhn):
    folder, _ = svhn
    lines = (folder / "test.txt").read_text().splitlines()
    lines[2] = "images/train800val200/000001.png 1"
    (folder / "test.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match="in a training list and in a scored one"):
        check_data(config(folder))


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
    full = load_data(base, size=size, **HALF)
    few = load_data(dataclasses.replace(base, limit_train=4, limit_test=3), size=size, **HALF)
    assert few.data_id == full.data_id
    for part, k in (("train", 4), ("scored", 3)):
        some, every = getattr(few, part), getattr(full, part)
        index = torch.arange(k) * len(every) // k
        assert some.labels.tolist() == every.labels[index].tolist()
        torch.testing.assert_close(all_of(some), every.batch(index), rtol=0, atol=0)


# --- Identity --------------------------------------------------------------------------------------------------------


def test_id_follows_every_listed_byte(svhn):
    folder, _ = svhn
    first = check_data(config(folder))
    assert check_data(config(folder)) == first
    path = folder / "images/test/000001.png"
    original = path.read_bytes()
    picture(77).save(path)
    changed = check_data(config(folder))
    assert changed[0] != first[0] and changed[1] == first[1]
    path.write_bytes(original)
    assert check_data(config(folder)) == first
    text = (folder / "test.txt").read_text()
    (folder / "test.txt").write_text(
        text.replace("000002.png 1", "000002.png 2").replace("000002.png 0", "000002.png 1")
    )
    relabelled = check_data(config(folder))
    assert relabelled[0] != first[0] and relabelled[1] != first[1]


def test_id_does_not_depend_on_the_place_or_the_cache(svhn, tmp_path):
    folder, _ = svhn
    first = check_data(config(folder))
    assert list((folder / layout.CACHE).glob("identity-*.json"))
    shutil.copytree(folder, tmp_path / "elsewhere" / "svhn", ignore=shutil.ignore_patterns(layout.CACHE))
    assert check_data(config(tmp_path / "elsewhere" / "svhn")) == first
    for cached in (folder / layout.CACHE).glob("identity-*.json"):
        cached.write_text("{")
    assert check_data(config(folder)) == first


def test_check_hashes_a_folder_once_and_decodes_nothing(svhn, monkeypatch):
    monkeypatch.setattr(images, "decode_rgb", None)
    monkeypatch.setattr(decoded, "decode_rgb", None)
    first = check_data(config(svhn[0]))
    monkeypatch.setattr(layout, "read_image_bytes", None)
    assert check_data(config(svhn[0])) == first


def test_jpegs_of_unknown_origin_count_as_lossy(svhn, tmp_path):
    folder, _ = svhn
    assert not load_data(config(folder), size=8, **HALF).lossy
    shutil.rmtree(folder)
    write_vtab(folder, suffix=".jpg")
    assert load_data(config(folder), size=8, **HALF).lossy


@pytest.mark.parametrize("split", ["train800", "test"])
def test_a_changed_image_of_a_prepared_folder_is_refused(caltech, split):
    path = caltech / f"images/{split}/000000.jpg"
    changed = bytearray(path.read_bytes())
    changed[-3] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError, match="was changed after it was prepared"):
        task = load_data(config(caltech), size=8, **HALF)
        all_of(task.scored if split == "test" else task.train)
    path.write_bytes(changed[:-1])
    with pytest.raises(InputError, match="not what was prepared"):
        check_data(config(caltech))


def test_a_changed_list_of_a_prepared_folder_is_refused(caltech):
    text = (caltech / "test.txt").read_text().splitlines()
    (caltech / "test.txt").write_text("\n".join(text[::-1]) + "\n")
    with pytest.raises(InputError, match=r"test\.txt was changed after it was prepared"):
        check_data(config(caltech))


# --- Embedded tasks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", mini_tasks.TASKS)
@pytest.mark.parametrize("evaluate", ["test", "val"])
def test_embedded_tasks_at_their_own_size_are_untouched(task, evaluate):
    cell = DataConfig("mini", task, evaluate=evaluate)
    got = load_data(cell, size=32, **HALF)
    names = ("train800val200", "test") if evaluate == "test" else ("train800", "val200")
    for part, name in zip((got.train, got.scored), names, strict=True):
        pixels, labels = mini_tasks.load_task(task)[name]
        torch.testing.assert_close(all_of(part), torch.from_numpy(pixels.copy()).float() / 255 * 2 - 1)
        assert part.labels.tolist() == labels.tolist()
    assert check_data(cell) == (got.data_id, got.split_id) == (mini_tasks.task_data_id(task), got.split_id)
    assert got.synthetic == (task != "digits") and not got.lossy
    assert got.classes == DATASETS[task].classes


def test_embedded_tasks_at_another_size_are_resized():
    task = load_data(DataConfig("mini", "count", limit_train=5, limit_test=5), size=48, **HALF)
    for part, name in ((task.train, "train800val200"), (task.scored, "test")):
        pixels = mini_tasks.load_task("count")[name][0]
        want = [expected(Image.fromarray(pixels[i * len(pixels) // 5].transpose(1, 2, 0)), 48) for i in range(5)]
        torch.testing.assert_close(all_of(part), torch.stack(want))


def test_a_warm_worker_renders_once(monkeypatch):
    check_data(DataConfig("mini", "location"))
    monkeypatch.setitem(mini_tasks.RENDERED, "location", (16, None))
    for evaluate in ("test", "val"):
        load_data(DataConfig("mini", "location", evaluate=evaluate), size=32, **HALF)


def test_changing_a_batch_changes_no_data():
    task = load_data(DataConfig("mini", "location"), size=32, **HALF)
    first = task.scored.batch(torch.arange(4))
    first.zero_()
    assert task.scored.batch(torch.arange(4)).abs().sum() > 0

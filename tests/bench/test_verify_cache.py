"""What ``verify`` and the next use say of decoded images and images that changed behind an unchanged size and time."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.small_folders import HALF, SIZES, all_of, config, picture
from rich.console import Console
from s2a_bench.cells import run
from s2a_bench.cli.data import verify_datasets
from s2a_bench.config import BackboneConfig, CellConfig, MethodConfig, TrainConfig
from s2a_bench.data import folder as layout
from s2a_bench.data.loading import check_data, load_data
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.table.types import VTAB_LISTS
from s2a_bench.data.verify import Problem, verify_dataset


def used(folder: Path) -> Path:
    """Decodes both lists; returns the test list's file."""
    task = load_data(config(folder), size=8, **HALF)
    for part in (task.train, task.scored):
        all_of(part)
    (path,) = (folder / layout.CACHE).glob("test-*.u8")
    return path


def of_cache(folder: Path) -> list[Problem]:
    return [problem for problem in verify_dataset(folder.name, folder.parent) if problem.file.startswith(layout.CACHE)]


@pytest.mark.parametrize("which", ["svhn", "caltech"])
def test_zeroed_pixels_are_named_by_verify_and_made_again_by_the_next_use(which, request):
    made = request.getfixturevalue(which)
    folder = made[0] if which == "svhn" else made
    path = used(folder)
    before = all_of(load_data(config(folder), size=8, **HALF).scored)
    assert of_cache(folder) == []
    whole = path.read_bytes()
    pixels = SIZES[VTAB_LISTS.index("test")] * 3 * 8 * 8
    path.write_bytes(bytes(pixels) + whole[pixels:])
    (problem,) = of_cache(folder)
    assert not problem.note and path.name in problem.file and "damaged" in problem.what
    out = io.StringIO()
    assert verify_datasets([DATASETS[folder.name]], folder.parent, Console(file=out, width=200)) == 1
    assert "1 problems" in out.getvalue()
    task = load_data(config(folder), size=8, **HALF)
    torch.testing.assert_close(all_of(task.scored), before, rtol=0, atol=0)
    assert len(task.notes) == 1 and "made again" in task.notes[0]
    assert path.read_bytes() == whole and of_cache(folder) == []


def test_the_record_of_a_cell_says_that_a_cache_was_made_again(svhn):
    folder, _ = svhn
    cell = CellConfig(
        config(folder), BackboneConfig(random_weights=True), MethodConfig("linear"), TrainConfig(1, 0), threads=1
    )
    first = run.run(cell)
    assert (first.status, first.notes) == ("done", []), first.error
    for path in (folder / layout.CACHE).glob("*.u8"):
        path.write_bytes(bytes(3 * 32 * 32) + path.read_bytes()[3 * 32 * 32 :])
    again = run.run(cell)
    assert (again.cell_id, again.accuracy) == (first.cell_id, first.accuracy)
    assert [point["loss"] for point in again.curve] == [point["loss"] for point in first.curve]
    assert len(again.notes) == 2 and all("made again" in note for note in again.notes)


def test_a_flipped_bit_a_cut_and_a_foreign_file_are_named(svhn):
    folder, _ = svhn
    path = used(folder)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for damaged in (bytes(flipped), whole[:-1], b"", b"garbage" * 50):
        path.write_bytes(damaged)
        (problem,) = of_cache(folder)
        assert not problem.note and "damaged" in problem.what
    path.write_bytes(whole)
    path.rename(path.with_name(path.name.replace("test-", "train800-")))
    (problem,) = of_cache(folder)
    assert "damaged" in problem.what


def test_a_cache_of_an_earlier_version_is_a_note(svhn):
    folder, _ = svhn
    path = used(folder)
    n, image = SIZES[3], 3 * 8 * 8
    shapes = [value for i in range(n) for value in (i * image, 8, 8)]
    path.write_bytes(path.read_bytes()[: n * image] + np.array([*shapes, n], "<i8").tobytes())
    (problem,) = of_cache(folder)
    assert problem.note and "earlier version" in problem.what


# --- Images that changed ---------------------------------------------------------------------------------------------


def replace_unseen(path: Path, content: bytes) -> None:
    """Another content of the same size, and the old time of modification."""
    stat = path.stat()
    assert len(content) <= stat.st_size
    path.write_bytes(content.ljust(stat.st_size, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def png(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def padded(svhn) -> Path:
    """As ``svhn``; there is room behind the image that is replaced, as every decoder ignores."""
    folder, _ = svhn
    image = folder / "images/test/000002.png"
    image.write_bytes(image.read_bytes() + bytes(50))
    return folder


def changed(folder: Path) -> list[Problem]:
    return [problem for problem in verify_dataset(folder.name, folder.parent) if "was changed" in problem.what]


def test_an_unseen_change_without_manifest_is_named_by_verify(padded):
    used(padded)
    assert changed(padded) == []
    replace_unseen(padded / "images/test/000002.png", png(99))
    (problem,) = changed(padded)
    assert (problem.file, problem.line, problem.note) == ("test.txt", 3, False)
    assert "000002.png" in problem.what and str(padded / layout.CACHE) in problem.what


def test_an_unseen_change_is_other_data_for_the_next_use(padded):
    used(padded)
    before, old = check_data(config(padded)), all_of(load_data(config(padded), size=8, **HALF).scored)
    replace_unseen(padded / "images/test/000002.png", png(99))
    after, task = check_data(config(padded)), load_data(config(padded), size=8, **HALF)
    assert after[0] != before[0] and after[1] == before[1] and task.data_id == after[0]
    new = all_of(task.scored)
    assert not torch.equal(new[2], old[2])
    torch.testing.assert_close(new[[0, 1, 3, 4, 5, 6]], old[[0, 1, 3, 4, 5, 6]], rtol=0, atol=0)
    assert changed(padded) == []


def test_a_plain_change_without_manifest_is_no_problem(padded):
    """It has another id at its next use."""
    used(padded)
    (padded / "images/test/000002.png").write_bytes(png(98))
    assert changed(padded) == []


def test_with_a_manifest_the_manifest_decides(caltech):
    before = all_of(load_data(config(caltech), size=8, **HALF).scored)
    image = caltech / "images/test/000000.jpg"
    other = bytearray(image.read_bytes())
    other[-3] ^= 1
    replace_unseen(image, bytes(other))
    (problem,) = changed(caltech)
    assert problem.line == 1 and not problem.note
    # What was decoded before is what was prepared.
    torch.testing.assert_close(all_of(load_data(config(caltech), size=8, **HALF).scored), before, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["data_id", "hash", "key", "not JSON", "too deep", "a list", "earlier version"])
def test_a_damaged_memory_of_an_identity_is_not_believed(svhn, what):
    folder, _ = svhn
    first = check_data(config(folder))
    (path,) = (folder / layout.CACHE).glob("identity-*.json")
    values = json.loads(path.read_text())
    if what == "data_id":
        values["data_id"] = "0" * 16
    elif what == "hash":
        values["files"]["images/test/000000.png"]["sha256"] = "0" * 64
    elif what == "key":
        values["key"] = "0"
    elif what == "a list":
        values["files"] = list(values["files"])
    elif what == "earlier version":
        del values["files"]
    texts = {"not JSON": "{", "too deep": "[" * 200_000}
    path.write_text(texts.get(what, json.dumps(values)))
    expected = 1 if what == "hash" else 0
    assert len(changed(folder)) == expected
    assert check_data(config(folder)) == first
    assert changed(folder) == []

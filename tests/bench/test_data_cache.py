"""The decoded cache: shared, made again when broken, done without where it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench.small_folders import COUNTS, HALF, all_of, config
from s2a_bench.data import decoded, images
from s2a_bench.data import folder as layout
from s2a_bench.data.loading import load_data
from s2a_bench.errors import InputError


def cached_arrays(folder: Path) -> list[Path]:
    return sorted((folder / layout.CACHE).glob("*.u8"))


def test_full_test_lists_are_decoded_once(caltech, monkeypatch):
    first = all_of(load_data(config(caltech), size=9, **HALF).scored)
    assert len(cached_arrays(caltech)) == 1
    opened = []
    monkeypatch.setattr(
        decoded,
        "decode_rgb",
        lambda content, name, *rest: opened.append(name) or images.decode_rgb(content, name, *rest),
    )
    task = load_data(config(caltech), size=9, **HALF)
    torch.testing.assert_close(all_of(task.scored), first, rtol=0, atol=0)
    assert not any("images/test/" in name for name in opened)


def test_each_view_has_its_own_cache(caltech):
    for view in ({"size": 9}, {"size": 7}, {"size": 9, "interpolation": "bilinear"}):
        all_of(load_data(config(caltech), **view, **HALF).scored)
    assert len(cached_arrays(caltech)) == 3
    load_data(config(caltech, limit_test=2), size=11, **HALF)
    load_data(config(caltech, evaluate="val"), size=11, **HALF)
    assert len(cached_arrays(caltech)) == 3


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"garbage" * 99, None])
def test_a_broken_cache_is_made_again(caltech, content):
    first = all_of(load_data(config(caltech), size=9, **HALF).scored)
    (path,) = cached_arrays(caltech)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] if content is None else content)
    torch.testing.assert_close(all_of(load_data(config(caltech), size=9, **HALF).scored), first, rtol=0, atol=0)
    assert path.read_bytes() == whole


def test_an_error_while_decoding_leaves_no_cache(caltech):
    (caltech / "images/test/000006.jpg").rename(caltech / "gone")
    shutil.copy(caltech / "images/test/000005.jpg", caltech / "images/test/000006.jpg")
    size = (caltech / "gone").stat().st_size
    copy = caltech / "images/test/000006.jpg"
    copy.write_bytes(copy.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(InputError, match="was changed"):
        all_of(load_data(config(caltech), size=9, **HALF).scored)
    assert not [path for path in (caltech / layout.CACHE).iterdir() if path.suffix != ".json"]


def test_without_room_images_are_decoded_as_they_are_read(caltech, monkeypatch):
    want = all_of(load_data(config(caltech), size=9, **HALF).scored)
    shutil.rmtree(caltech / layout.CACHE)
    monkeypatch.setattr(decoded, "CACHE_LIMIT", 10)
    torch.testing.assert_close(all_of(load_data(config(caltech), size=9, **HALF).scored), want, rtol=0, atol=0)
    assert not cached_arrays(caltech)


def test_a_cache_that_cannot_be_written_is_done_without(svhn):
    folder, _ = svhn
    want = all_of(load_data(config(folder), size=9, **HALF).scored)
    shutil.rmtree(folder / layout.CACHE)
    (folder / layout.CACHE).write_text("a file where the folder should be")
    torch.testing.assert_close(all_of(load_data(config(folder), size=9, **HALF).scored), want, rtol=0, atol=0)


FILL = """
import dataclasses, sys, torch
from s2a_bench.config import DataConfig
from s2a_bench.data.loading import load_data
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.table.types import Counts
root, counts, kill = eval(sys.argv[1])
DATASETS["svhn"] = dataclasses.replace(DATASETS["svhn"], counts=Counts(*counts))
if kill:
    import os, signal
    from s2a_bench.data import decoded
    original = decoded.decode_rgb
    def decode_and_die(content, name, *rest):
        if "test/000004" in name:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(content, name, *rest)
    decoded.decode_rgb = decode_and_die
task = load_data(DataConfig("vtab", "svhn", root), size=40, mean=(0.5,) * 3, std=(0.5,) * 3)
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
    mine = float(all_of(load_data(config(folder), size=40, **HALF).scored).double().sum())
    assert float(other.communicate(timeout=120)[0]) == mine
    assert len(cached_arrays(folder)) == 1
    assert not [p for p in (folder / layout.CACHE).iterdir() if p.suffix == ".tmp"]

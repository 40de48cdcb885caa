"""Preparing a download that ends in the middle: by an error, by Ctrl-C, by a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from bench.small_caltech import PER_CLASS, TINY_COUNTS, nothing_there, wrong
from s2a_bench.data import prepare as prepare_module
from s2a_bench.data.prepare import prepare_dataset
from s2a_bench.errors import InputError


@pytest.mark.parametrize("stage", ["_write_images", "open_source", "_make_manifest", "verify_folder", "sync_folder"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_in_the_middle_leaves_nothing(tmp_path, source, monkeypatch, stage, error):
    original = getattr(prepare_module, stage)

    def fail(*args, **kwargs):
        original(*args, **kwargs)
        raise error("injected")

    monkeypatch.setattr(prepare_module, stage, fail)
    with pytest.raises(InputError if error is OSError else error, match="injected"):
        prepare_dataset("caltech101", source, tmp_path / "root")
    if stage == "sync_folder":  # it has its name already: whole
        assert wrong(tmp_path / "root") == []
    else:
        assert nothing_there(tmp_path / "root")


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
from s2a_bench.data.prepare import prepare_dataset
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.table.types import Counts, PoolRule

names, per_class, counts, source, root, stage, at = eval(sys.argv[1])
row = DATASETS["caltech101"]
preparation = dataclasses.replace(row.preparation, class_names=names, rule=PoolRule(per_class, (0, 8), (14, 17)))
DATASETS["caltech101"] = dataclasses.replace(row, classes=3, counts=Counts(*counts), preparation=preparation)

def progress(what, done, total):
    if what == stage and done == at:
        os.kill(os.getpid(), signal.SIGKILL)

prepare_dataset("caltech101", Path(source), Path(root), progress)
"""


@pytest.mark.parametrize(("stage", "at"), [("reading the source", 10), ("writing to disk", 0)])
def test_a_killed_process_leaves_nothing_that_loads(tmp_path, source, tiny, stage, at):
    root = tmp_path / "root"
    names = tuple(tiny.preparation.class_names)
    args = repr((names, PER_CLASS, tuple(TINY_COUNTS), str(source), str(root), stage, at))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, args], env=env, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not nothing_there(root)  # its temporary folder is still there, and is not a dataset
    prepare_dataset("caltech101", source, root)
    assert wrong(root) == []
    assert [path.name for path in root.iterdir()] == ["caltech101"]  # the stale one is gone

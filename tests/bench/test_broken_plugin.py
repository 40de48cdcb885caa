"""A package of methods that cannot be imported is named on standard error; the commands work without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def install(folder: Path, code: str) -> dict[str, str]:
    """An environment in which a package with such a module of methods is installed."""
    (folder / "theirs_methods.py").write_text(code)
    about = folder / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[s2a.methods]\ntheirs = theirs_methods\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.full  # four processes that import torch
@pytest.mark.parametrize("code", ["raise RuntimeError('boom')", "print('garbage'); import sys; sys.exit(0)"])
def test_a_command_works_without_a_broken_package_and_says_so(tmp_path, code):
    environment = install(tmp_path, code)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "s2a_bench", *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    done = call("memory", "--method", "bias", "--batch-size", "1", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["method"] == "bias"
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("s2a-bench: ")]
    assert "'theirs_methods' cannot be imported" in sentence
    missed = call("sweep", "--methods", "theirs", "--datasets", "digits")
    assert missed.returncode == 2 and "Unknown method 'theirs'" in missed.stderr.splitlines()[-1]
    assert "'theirs_methods' cannot be imported" in missed.stderr.splitlines()[-1]

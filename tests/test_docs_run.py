"""Every command and Python block of README.md and docs/*.md really runs, page by page, in document order.

Large backbones, the pages' images and long trainings have stand-ins (below). What no test can run here is listed with
the reason; a line of the list that names nothing in the pages any more is an error.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import PAGES, ROOT, all_commands, blocks

NOT_RUN = {
    "pip install": "installs from the network",
    "nox -s tests": "this is the session that runs the tests",
    "nox -s lint": "what CI runs",
    "nox -s bare": "what CI runs",
    "nox -s lowest": "installs the oldest versions from the network",
    "nox -s benchmarks": "minutes of timing",
    "nox -s docs": "installs from the network; CI builds the site",
    "ray start": "starts a cluster; tests/bench/test_cluster.py does",
    "--ray-address": "needs that cluster; tests/bench/test_cluster.py has one",
    "caltech101": "needs a download of 137 MB; tests/bench/test_prepare.py makes a small one",
    "half_precision.py": "needs a pretrained ViT-S/14 and images",
    "--memory-budget 8GiB --weights": "needs that file",
    "mlflow models": "MLflow's command starts servers of its own; tests/bench/test_finetune_mlflow.py loads the model",
    "curl": "needs that server",
    "s2a-bench estimate": "measures full-size backbones for minutes; tests/bench/test_estimate.py",
    "memory --paper": "22 full-size rows, minutes; tests/bench/test_paper.py",
    "find archive": "needs that folder; tests/bench/test_predict_paths.py reads lists from a pipe",
    "--seeds 100": "one cell for each line of the page's tables",
}
"""Part of a command -> why no test runs it."""

STAND_INS = [
    (r"vit_\w+_patch1[46]_\w+(\.\w+)?", "mini_vit"),
    (r"swin_base_\w+", "mini_swin"),
    (r"convnext_base", "mini_convnext"),
    (r"\b(8|12|24)GiB", "320MB"),
    (r"--epochs \d+", "--epochs 1"),
    (r"--seeds [\d ]+", "--seeds 0 "),
    (r"^nox -s bench --", "s2a-bench sweep"),
    (r"^nox -s bench$", "s2a-bench sweep --datasets digits --methods linear s2a"),
    (r"method\.lrp_rank=5,15,30 method\.lsb_reduction=16,8\S*", "method.lrp_rank=5,15 method.lsb_reduction=8"),
    (r"--method all|--backbone mini_vit$", "--backbone mini_vit --method s2a lora"),
]
"""What stands for the large things of the pages, in this order."""

SHORT = {
    "s2a-bench sweep": "--limit-train 16 --limit-test 16 --limit-val 16 --serial",
    "s2a-bench finetune": "",
}
"""Added to commands that train, unless the line says otherwise."""

BEFORE = {
    "README.md": "names = [str(i) for i in range(100)]\nloader = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))]\n",
    "docs/lean.md": "model = backbone()\nclass MySideBlock(torch.nn.Module): pass\nclass MyTokenBlock(torch.nn.Module): pass\n",
    "docs/fits.md": "model, config = backbone(), s2a.S2AConfig()\n",
    "docs/export.md": (
        "import json, s2a_bench\nadapted = s2a.from_pretrained('finetuned/adapter')\nbatch = torch.randn(2, 3, 32, 32)\n"
        "s2a.export(adapted, 'model.pt2', 'torch', images=batch)\n"
    ),
    "docs/integrations.md": (
        "from timm.data import resolve_model_data_config\nfrom timm.optim import create_optimizer_v2\n"
        "from torch import nn\nfrom torch.nn.functional import cross_entropy\nbackbone_ = backbone\nbackbone = backbone()\n"
        "import types\nself = types.SimpleNamespace()\n"
        "accelerator = types.SimpleNamespace(is_main_process=True, unwrap_model=lambda model: model)\n"
    ),
}
"""Page -> what its blocks find: names that the text around them gives a meaning."""

PREPARE = """
import os, re, sys, warnings
from pathlib import Path
import numpy as np
import s2a, timm, torch
from PIL import Image
from s2a_bench.cells.embedded import mini_vit

torch.set_num_threads(1)


def backbone():
    return mini_vit()


rng = np.random.default_rng(0)
def picture(i):
    return Image.fromarray((rng.integers(0, 80, (40, 44, 3)) + 60 * i).astype(np.uint8))
"""


class Page:
    """A page that runs: one process for its Python blocks, one for each of its commands."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        binaries = folder / "bin"
        binaries.mkdir()
        script = binaries / "s2a-bench"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m s2a_bench "$@"\n')
        script.chmod(0o755)
        here = folder / "here"
        here.mkdir()
        paths = [str(Path(path).resolve()) for path in sys.path if path]
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
            "PYTHONPATH": os.pathsep.join(paths),
            "PATH": f"{binaries}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def run(self, *command: str) -> None:
        """Runs a command in the page's folder; it must end well."""
        done = subprocess.run(
            command, cwd=self.folder / "here", env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{self.name}: {command[-1]}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def shortened(command: str) -> str:
    """A command with the stand-ins in place of what is large."""
    for pattern, stand_in in STAND_INS:
        command = re.sub(pattern, stand_in, command)
    for start, more in SHORT.items():
        if command.startswith(start) and "--dry-run" not in command:
            given = "--epochs 1" if "--epochs" not in command and "epochs" not in command else ""
            command = f"{command} {more} {given}"
    return command


def python_of(text: str) -> str:
    """A block with a small backbone in place of timm's."""
    text = re.sub(r"timm\.create_model\([^()]*\)", "backbone()", text)
    for pattern, stand_in in STAND_INS[:4]:
        text = re.sub(pattern, stand_in, text)
    return text


def not_run(command: str) -> bool:
    return any(part in command for part in NOT_RUN)


def test_what_is_not_run_is_in_the_pages():
    text = "\n".join(command for _, command in all_commands())
    assert [part for part in NOT_RUN if part not in text] == []
    assert 3 * sum(not_run(command) for _, command in all_commands()) < len(all_commands())
    assert set(BEFORE) <= set(PAGES)


RUN = [page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))]
"""Pages with something to run."""
OWN_TESTS = {"docs/add-dataset.md", "docs/add-backbone.md", "docs/add-method.md"}
"""Their blocks change tables; the tests below run them."""


@pytest.mark.full
@pytest.mark.parametrize("page", [page for page in RUN if page not in OWN_TESTS])
def test_a_page_runs(page, tmp_path):
    runner = Page(page, tmp_path)
    steps = [PREPARE, SOURCES.get(page, ""), FILES]
    trained = any("finetuned" in block.text for block in blocks(page)) and not any(
        "s2a-bench finetune photos/" in block.text for block in blocks(page)
    )
    runner.run(sys.executable, "-c", "\n".join(steps))
    if trained:
        runner.run("bash", "-ec", "s2a-bench finetune photos --epochs 1")
    python: list[str] = []
    for block in blocks(page):
        if block.language == "python":
            python.append(f"# {block.where}\n{python_of(block.text)}")
        if block.language == "bash":
            # What Python blocks made, commands find: images, adapters.
            run_python(runner, python)
            python.clear()
            for command in block_commands(block):
                runner.run("bash", "-ec", shortened(command))
    run_python(runner, python)


def block_commands(block) -> list[str]:
    from doc_blocks import commands

    return [command for command in commands(block) if not not_run(command) and not command.startswith("export ")]


def run_python(runner: Page, python: list[str]) -> None:
    if python:
        before = BEFORE.get(runner.name, "")
        runner.run(sys.executable, "-W", "ignore", "-c", "\n".join([PREPARE, before, *python]))


FILES = """
if not Path("photos").exists():
    for i, name in enumerate(("cat", "dog")):
        for j in range(12):
            Path("photos", name).mkdir(parents=True, exist_ok=True)
            picture(i).save(f"photos/{name}/{j}.png")
for name in ("new.jpg", "photo.jpg", "image.jpg", "a.jpg", "b.jpg"):
    picture(0).save(name)
for folder in ("holiday", "scans/deep"):
    Path(folder).mkdir(parents=True)
    picture(0).save(Path(folder, "1.png"))
rows = "".join(f"photos/{name}/{j}.png,{name}\\n" for name in ("cat", "dog") for j in range(12))
Path("birds.csv").write_text("path,label\\n" + rows)
"""
SOURCES: dict[str, str] = {}

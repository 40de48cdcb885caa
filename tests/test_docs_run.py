"""Every command and Python block of README.md and docs/*.md really runs, page by page, in document order.

Large backbones, the pages' images and long trainings have stand-ins (below). What no test can run here is listed with
the reason; a line of the list that names nothing in the pages any more is an error.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bench.own_folders import picture
from doc_blocks import PAGES, Block, all_commands, blocks, commands

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
    "mlflow models": "MLflow's command starts servers of its own; tests/bench/test_finetune_mlflow.py loads the model",
    "curl": "needs that server",
    "s2a-bench ui": "a server, which ends with Ctrl-C; tests/bench/test_ui.py",
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
    (r"\b(8|12|24)GiB", "64MB"),
    (r"--epochs \d+", "--epochs 1"),
    (r"--seeds [\d ]+", "--seeds 0 "),
    (r"^nox -s bench --", "s2a-bench sweep"),
    (r"^nox -s bench$", "s2a-bench sweep --datasets digits --methods linear s2a"),
    (r"method\.lrp_rank=5,15,30 method\.lsb_reduction=16,8\S*", "method.lrp_rank=5,15 method.lsb_reduction=8"),
    (r"--method all", "--method s2a lora"),
]
"""What stands for the large things of the pages, in this order."""

SHORT = {
    "s2a-bench sweep": "--limit-train 16 --limit-test 16 --serial",
    "s2a-bench finetune": "",
}
"""Added to commands that train, unless the line says otherwise."""

BEFORE = {
    "README.md": """
names = [str(i) for i in range(100)]
loader = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))]
""",
    "docs/lean.md": """
model = backbone()
class MySideBlock(torch.nn.Module): pass
class MyTokenBlock(torch.nn.Module): pass
""",
    "docs/fits.md": """
model, config = backbone(), s2a.S2AConfig()
""",
    "docs/export.md": """
import json, s2a_bench
adapted = s2a.from_pretrained("finetuned/adapter")
batch = torch.randn(2, 3, 32, 32)
s2a.export(adapted, "model.pt2", "torch", images=batch)
""",
    "docs/integrations.md": """
import types
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import cross_entropy
backbone = backbone()
self = types.SimpleNamespace()
accelerator = types.SimpleNamespace(is_main_process=True, unwrap_model=lambda model: model)
""",
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
"""What lies in the folder where a page runs."""


FIRST = {
    "docs/training.md": "s2a-bench data prepare leaves --from photos --data-dir DATA",
    "docs/mlflow.md": "s2a-bench sweep --datasets digits --methods linear --epochs 1 --limit-train 16 --serial",
}
"""Page -> a command that its text takes as given."""


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
    if command.startswith("s2a-bench sweep") and "--experiment" not in command:
        command += "" if "--datasets" in command or "--suite" in command else " --datasets digits"
        command += "" if "--methods" in command else " --methods linear s2a"
    for start, more in SHORT.items():
        if command.startswith(start) and "--dry-run" not in command:
            given = "--epochs 1" if "--epochs" not in command and "epochs" not in command else ""
            command = f"{command} {more} {given}"
    return command


def python_of(text: str) -> str:
    """A block with a small backbone in place of timm's."""
    text = re.sub(r"timm\.create_model\([^()]*\)", "backbone()", text)
    return re.sub(r"vit_\w+_patch1[46]_\w+(\.\w+)?", "test_vit", text)


def not_run(command: str) -> bool:
    return any(part in command for part in NOT_RUN)


def test_what_is_not_run_is_in_the_pages():
    text = "\n".join(command for _, command in all_commands())
    assert [part for part in NOT_RUN if part not in text] == []
    assert 2 * sum(not_run(command) for _, command in all_commands()) < len(all_commands())
    assert set(BEFORE) <= set(PAGES)


RUN = [page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))]
"""Pages with something to run."""
OWN_TESTS = {"docs/add-dataset.md", "docs/add-backbone.md", "docs/add-method.md"}
"""Their blocks change tables; the tests below run them."""


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in RUN if page not in OWN_TESTS])
def test_a_page_runs(page, tmp_path):
    runner = Page(page, tmp_path)
    trained = any("finetuned" in block.text for block in blocks(page)) and not any(
        "s2a-bench finetune photos/" in block.text for block in blocks(page)
    )
    runner.run(sys.executable, "-c", PREPARE + FILES)
    if page in FIRST:
        runner.run("bash", "-ec", FIRST[page])
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


def block_commands(block: Block) -> list[str]:
    return [command for command in commands(block) if not not_run(command) and not command.startswith("export ")]


def run_python(runner: Page, python: list[str]) -> None:
    if python:
        before = BEFORE.get(runner.name, "")
        runner.run(sys.executable, "-W", "ignore", "-c", "\n".join([PREPARE, before, *python]))


def page_blocks(page: str) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python"]


def test_the_dataset_of_the_page_is_prepared(tmp_path, monkeypatch):
    from s2a_bench.data.table import lookup

    row, prepare = page_blocks("docs/add-dataset.md")
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("leaves.zip", "w") as archive:
        for i, name in enumerate(("ash", "birch", "oak")):
            for j in range(10):
                content = io.BytesIO()
                picture(i / 3, 10 * i + j).save(content, "JPEG")
                archive.writestr(f"leaves/{name}/{j}.jpg", content.getvalue())
    names: dict[str, Any] = {}
    exec(row, names)
    monkeypatch.setitem(lookup.DATASETS, "leaves", names["LEAVES"])
    exec(prepare, names)
    assert names["problems"] == [] and (names["folder"] / "manifest.json").is_file()


@pytest.mark.full
def test_the_backbone_of_the_page_takes_s2a(monkeypatch):
    from s2a.backbones import families

    entry, check = page_blocks("docs/add-backbone.md")
    names: dict[str, Any] = {}
    exec(entry, names)
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, names["POOLFORMER"]))
    exec(check, names)


@pytest.mark.full
def test_the_method_of_the_page_keeps_its_promises(monkeypatch):
    from s2a import registry

    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    source, check = page_blocks("docs/add-method.md")
    module = types.ModuleType("my_method")
    monkeypatch.setitem(sys.modules, "my_method", module)
    exec(source, module.__dict__)
    exec(check, module.__dict__)


@pytest.mark.parametrize("shape", [(44, 40), (40, 61), (333, 200), (64, 64)])
def test_the_pixels_of_the_onnx_example_are_those_of_the_library(shape, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image, ImageOps
    from s2a.image_transform import ImageTransform

    (text,) = (text for text in page_blocks("docs/serving.md") if "onnxruntime" in text)
    code = text[text.index("picture = ") : text.index("(logits,)")]
    transform = ImageTransform(32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    monkeypatch.chdir(tmp_path)
    picture(0.5, 0, *shape).save("new.jpg")
    names: dict[str, Any] = {
        "np": np,
        "Image": Image,
        "ImageOps": ImageOps,
        "size": 32,
        "resample": Image.Resampling.BICUBIC,
    }
    names["image"] = {"mean": transform.mean, "std": transform.std}
    exec(code, names)
    expected = transform(Image.open("new.jpg")).numpy()
    assert np.abs(names["pixels"] - expected).max() < 1e-5

"""Every command and Python block of README.md and docs/*.md really runs, page by page, in document order.

Large backbones, the pages' images and long trainings have stand-ins (``doc_stand_ins.py``). What no test can run here
is listed there with the reason; a line of the list that names nothing in the pages any more is an error.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.own_folders import picture
from doc_blocks import PAGES, ROOT, Block, all_commands, blocks, commands
from doc_stand_ins import BEFORE, FIRST, NOT_RUN, PREPARE, SERVERS, not_run, python_of, shortened, write_files


class Page:
    """A page that runs: one process for its Python blocks, one for each of its commands.

    Args:
        name: The page.
        folder: Where it runs.
        byte_code: Folder where all pages' processes keep it; an installation without any would be compiled every time.
    """

    def __init__(self, name: str, folder: Path, byte_code: Path) -> None:
        self.name, self.folder = name, folder
        self.servers: list[subprocess.Popen[bytes]] = []
        binaries = folder / "bin"
        binaries.mkdir()
        script = binaries / "s2a-bench"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m s2a_bench "$@"\n')
        script.chmod(0o755)
        self.here = folder / "here"
        self.here.mkdir()
        (self.here / "examples").symlink_to(ROOT / "examples")
        write_files(self.here, (ROOT / name).read_text(encoding="utf-8"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        paths = [str(Path(path).resolve()) for path in sys.path if path]
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHON"))},
            "PYTHONPYCACHEPREFIX": str(byte_code),
            "PYTHONPATH": os.pathsep.join(paths),
            "PATH": f"{binaries}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def run(self, *command: str) -> None:
        """Runs a command in the page's folder; it must end well."""
        done = subprocess.run(command, cwd=self.here, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {command[-1]}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"

    def run_command(self, command: str) -> None:
        """Runs a line of bash: ``export`` holds for those that follow, a server runs on until ``stop``."""
        command = shortened(command).replace("PORT", str(self.port))
        if "RUN_ID" in command:
            command = command.replace("RUN_ID", self.newest_run())
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environment[name] = value
        elif command.startswith(SERVERS):
            self.serve(command)
        else:
            self.run("bash", "-ec", command)

    def newest_run(self) -> str:
        """MLflow's id of the cell that was fine-tuned."""
        with sqlite3.connect(self.here / "finetuned" / "mlflow.db") as store:
            (run,) = store.execute("SELECT run_uuid FROM tags WHERE key = 'kind' AND value = 'cell'").fetchone()
        return run

    def serve(self, command: str) -> None:
        """Starts a server and waits until its port answers; ours say when they are ready."""
        log = self.folder / f"server{len(self.servers)}.log"
        with log.open("wb") as said:
            server = subprocess.Popen(
                ["bash", "-ec", command],
                cwd=self.here,
                env=self.environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.servers.append(server)
        for _ in range(600):
            assert server.poll() is None, f"{self.name}: {command} ended\n{log.read_text()[-3000:]}"
            with socket.socket() as client:
                ready = not command.startswith("s2a-bench") or "Press Ctrl-C" in log.read_text()
                if ready and client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(f"{self.name}: {command} does not answer\n{log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Ctrl-C ends every server."""
        for server in self.servers:
            os.killpg(server.pid, signal.SIGINT)
        for server in self.servers:
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                raise


@pytest.fixture
def make_page(tmp_path: Path, shared_folder: Path) -> Iterator[Any]:
    """Makes a page that runs in a folder of its own; its servers end with the test."""
    made: list[Page] = []

    def make(name: str) -> Page:
        made.append(Page(name, tmp_path, shared_folder / "byte_code"))
        return made[-1]

    yield make
    for page in made:
        page.stop()


def test_what_is_not_run_is_in_the_pages():
    text = "\n".join(command for _, command in all_commands())
    assert [part for part in NOT_RUN if part not in text] == []
    assert 5 * sum(not_run(command) for _, command in all_commands()) < len(all_commands())
    assert {*BEFORE, *FIRST} <= set(RUN)


def runs(block: Block) -> bool:
    """Whether anything of a block runs."""
    return block.language == "python" or (block.language == "bash" and not all(map(not_run, commands(block))))


RUN = [page for page in PAGES if any(map(runs, blocks(page)))]
"""Pages with something to run."""
OWN_TESTS = {"docs/add-dataset.md", "docs/add-backbone.md", "docs/add-method.md"}
"""Their blocks change tables; the tests below run them."""


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in RUN if page not in OWN_TESTS])
def test_a_page_runs(page, make_page):
    runner = make_page(page)
    text = "\n".join(block.text for block in blocks(page))
    if page in FIRST:
        runner.run_command(FIRST[page])
    if "finetuned" in text and "s2a-bench finetune photos/" not in text:
        runner.run_command("s2a-bench finetune photos")
    python: list[str] = []
    for block in blocks(page):
        if block.language == "python":
            python.append(f"# {block.where}\n{python_of(block.text)}")
        if block.language == "bash":
            # What Python blocks made, commands find: images, adapters.
            run_python(runner, python)
            python.clear()
            for command in commands(block):
                if not not_run(command):
                    runner.run_command(command)
    run_python(runner, python)


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

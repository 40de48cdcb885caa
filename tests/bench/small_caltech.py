"""Caltech101 with three classes, for tests that take milliseconds."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from s2a_bench.config import DataConfig
from s2a_bench.data.table.lookup import Counts
from s2a_bench.data.verify import Problem, verify_dataset
from s2a_bench.errors import InputError

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
    return [problem for problem in verify_dataset("caltech101", root) if not problem.note]


def entries(folder: Path, name: str) -> list[tuple[str, int]]:
    lines = (folder / f"{name}.txt").read_text().splitlines()
    return [(path, int(label)) for path, label in (line.split(" ") for line in lines)]


def nothing_there(root: Path) -> bool:
    """No dataset, no left-over, nothing that loads."""
    from s2a_bench.data.loading import check_data  # Here, not above: it imports torch.

    with pytest.raises(InputError, match="was not found"):
        check_data(DataConfig("vtab", "caltech101", str(root)))
    return not root.exists() or not list(root.iterdir())

"""Own images as people have them: small noisy pictures, of which no two look alike, in folders and tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from s2a_bench.data.own.prepare import OwnOptions, prepare_own
from s2a_bench.errors import InputError, sentences


def picture(seed: int, size: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(seed: int, size: int = 12) -> bytes:
    return encode(picture(seed, size), "PNG")


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write_images(folder: Path, counts: Mapping[str, int], start: int = 0) -> list[str]:
    """``<folder>/<class>/<number>.png``; returns their paths."""
    names = []
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            names.append(f"{label}/{i:03d}.png")
            (folder / names[-1]).write_bytes(png(start + len(names)))
    return names


def write_table(path: Path, header: str, rows: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def lists_of(folder: Path) -> dict[str, dict[str, int]]:
    """List -> name of each image in the source -> label, read without the code under test."""
    import json

    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    found: dict[str, dict[str, int]] = {}
    for part in ("train", "val", "trainval", "test"):
        found[part] = {}
        for line in (folder / f"{part}.txt").read_text(encoding="utf-8").splitlines():
            path, _, label = line.rpartition(" ")
            found[part][files[path]["source"]] = int(label)
    return found


def prepare(source: Path, root: Path, name: str = "mine", **options) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Prepares; returns the lists and the notes."""
    notes: list[str] = []

    def say(what: str, done: int, total: int) -> None:
        if what.startswith("note: "):
            notes.append(what)

    folder = prepare_own(name, source, root, OwnOptions(**options), say)
    return lists_of(folder), notes


def refusal(source: Path, root: Path, name: str = "mine", **options) -> list[str]:
    """The sentences with which preparing is refused; nothing was written."""
    with pytest.raises(InputError) as caught:
        prepare_own(name, source, root, OwnOptions(**options))
    assert not root.exists() or list(root.iterdir()) == []
    return list(sentences(caught.value))

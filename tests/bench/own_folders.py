"""Own datasets written by hand: the folder that ``data prepare NAME --from DIR`` leaves behind, with made-up images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from s2a_bench.data.folder import compute_content_id, sha256

SIZES = {"train": 12, "val": 6, "test": 6}
CLASSES = ("dark", "light")


def picture(label: float, seed: int, width: int = 40, height: int = 36) -> Image.Image:
    """Noise around a brightness that tells the class."""
    noise = np.random.default_rng(seed).integers(0, 80, (height, width, 3))
    return Image.fromarray((noise + 150 * label).astype(np.uint8))


def write_own(
    root: Path,
    name: str = "leaves",
    sizes: dict[str, int] = SIZES,
    make: Callable[[int, int], Image.Image] = picture,
    classes: tuple[str, ...] = CLASSES,
    suffix: str = ".png",
    exif: Any = None,
) -> Path:
    """Writes ``<root>/<name>`` with its four lists and manifest; labels go round the classes."""
    folder = root / name
    lists: dict[str, list[str]] = {}
    files: dict[str, dict[str, Any]] = {}
    seed = 0
    for part, count in sizes.items():
        (folder / "images" / part).mkdir(parents=True)
        lists[part] = []
        for i in range(count):
            path, label = f"images/{part}/{i:06d}{suffix}", i % len(classes)
            options = {"exif": exif} if exif is not None else {}
            make(label, seed).save(folder / path, **options)
            data = (folder / path).read_bytes()
            files[path] = {"sha256": sha256(data), "bytes": len(data), "source": path, "label": label}
            lists[part].append(f"{path} {label}")
            seed += 1
    lists["trainval"] = lists["train"] + lists["val"]
    hashes = {}
    for part, lines in lists.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{part}.txt").write_text(text)
        hashes[f"{part}.txt"] = sha256(text.encode())
    manifest = {
        "schema": 1,
        "dataset": name,
        "data_id": compute_content_id(hashes, {path: info["sha256"] for path, info in files.items()}),
        "split_id": "own-seed0-v1",
        "seed": 0,
        "source_id": "0" * 16,
        "source": name,
        "lossy": False,
        "classes": list(classes),
        "counts": {part: len(lines) for part, lines in lists.items()},
        "lists": hashes,
        "files": files,
        "note": "",
        "code": {"s2a_bench": "0", "recipe": "1"},
        "own": {"format": "class folders", "fractions": {"val": 0.1, "test": 0.1}, "drawn": ["val", "test"]},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder

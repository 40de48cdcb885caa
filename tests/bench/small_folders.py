"""Small folders in the VTAB-1k layout, and what a cell should get from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from s2a_bench.config import DataConfig
from s2a_bench.data.table.lookup import Counts
from s2a_bench.data.table.types import VTAB_LISTS

if TYPE_CHECKING:
    import torch
    from s2a_bench.data import loading as data

HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SIZES = (6, 3, 9, 7)
COUNTS = Counts(*SIZES)


def picture(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_vtab(folder: Path, suffix: str = ".png", width: int = 8, height: int = 8) -> dict[str, Image.Image]:
    """A folder as other tools write it: copies for train800val200, no manifest."""
    seed, written = 0, {}
    for name, n in zip(VTAB_LISTS, SIZES, strict=True):
        (folder / "images" / name).mkdir(parents=True)
        lines = []
        if name == "train800val200":
            seed = 0
        for i in range(n):
            seed += 1
            path = f"images/{name}/{i:06d}{suffix}"
            written[path] = picture(seed, width, height)
            written[path].save(folder / path)
            lines.append(f"{path} {seed % 3}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return written


def config(folder: Path, **changes) -> DataConfig:
    return DataConfig("vtab", folder.name, str(folder.parent), **changes)


def all_of(part: data.Images) -> torch.Tensor:
    import torch

    return part.batch(torch.arange(len(part)))


def expected(picture: Image.Image, size: int, mean=HALF["mean"], std=HALF["std"], filter=Image.Resampling.BICUBIC):
    """Pillow and numpy, one image at a time."""
    import torch

    rgb = picture.convert("RGB")
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), filter)
    return torch.from_numpy(((np.asarray(rgb) / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)).float()

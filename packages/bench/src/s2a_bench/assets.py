"""Where the embedded data files lie: inside the installed package, or in ``data/`` of a checkout."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def data_file(name: str) -> Path:
    """Path of an embedded file, ``backbones/mini_vit.safetensors`` say; where it would be if it is missing.

    Args:
        name: Relative to the data folder, with ``/``.
    """
    packaged = Path(str(files("s2a_bench"))) / "_data" / name
    if packaged.exists():
        return packaged
    for folder in Path(__file__).resolve().parents:
        if (folder / "data" / "backbones").is_dir():
            return folder / "data" / name
    return packaged

"""Checks what a use of an adapter is asked for, before torch is imported."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

from s2a_bench.data.readers.walk import path_exists
from s2a_bench.errors import InputError

CONFIG = "adapter_config.json"
"""The file that every adapter folder has."""

SUFFIXES = {"timm": ".safetensors", "onnx": ".onnx", "torch": ".pt2"}
"""Export format -> suffix of its file, as in ``s2a.exporting``; of ``timm`` any other name is a folder."""

Progress = Callable[[int, int], None]
"""Called with the images done and all of them."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class PredictRequest:
    """What to predict, checked.

    Attributes:
        adapter: Folder or hub id.
        paths: Image files.
        top: Classes per image.
        batch_size: Images at once.
        weights: Of the backbone; ``None``: as the adapter says.
        device: torch device, or ``auto``.
    """

    adapter: str
    paths: list[str]
    top: int
    batch_size: int
    weights: Path | None
    device: str


def find_adapter(given: str | os.PathLike[str]) -> str:
    """An adapter folder, also where the output folder of ``finetune`` is given; or a hub id, as it is.

    Raises:
        InputError: There is no such folder, it holds no adapter, or it is a file.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"folder={given!r} has the wrong type; it must be the path of an adapter, or a hub id.")
    name = os.fspath(given)
    if not name:
        raise InputError("The path of the adapter is empty; give the folder of one, or a hub id owner/name.")
    path = Path(name)
    for folder in (path, path / "adapter"):
        if path_exists(folder / CONFIG):
            return str(folder)
    if path_exists(path):
        kind = "folder without" if path.is_dir() else "file, no folder with"
        raise InputError(
            f"{name} is a {kind} {CONFIG}; give the folder that s2a.save_pretrained wrote, the output folder of "
            "s2a-bench finetune, or a hub id owner/name."
        )
    owner = name.partition("/")[0]
    if _HUB_ID.fullmatch(name) and owner not in (".", "..") and not path_exists(Path(owner)):
        return name
    raise InputError(f"There is no folder {name}, and it is no hub id owner/name; check the path.")


def check_weights(path: Path | None) -> None:
    """Checks that a weights file is there.

    Raises:
        InputError: It is not.
    """
    if path is not None and not (path_exists(path) and path.is_file()):
        raise InputError(f"No weights file at {path}; pass an existing .safetensors or .pth file to --weights.")


def check_count(flag: str, value: int) -> None:
    """Checks a number that must be at least 1.

    Raises:
        InputError: It is smaller, or no whole number.
    """
    if type(value) is not int or value < 1:
        raise InputError(f"{flag} {value!r} must be a whole number of at least 1.")


def check_export_path(path: Path, format: str) -> None:
    """Checks the name and the place of an export.

    Raises:
        InputError: An unknown format, a suffix that is not the format's, or a folder above that is not there.
    """
    if format not in SUFFIXES:
        raise InputError(f"Unknown format {format!r}: choose one of {', '.join(SUFFIXES)}.")
    if format != "timm" and path.suffix != SUFFIXES[format]:
        raise InputError(f"{path} must end in {SUFFIXES[format]}, as files of format {format} do.")
    if not path_exists(path.absolute().parent):
        raise InputError(f"{path.absolute().parent} does not exist; create it, or export elsewhere.")

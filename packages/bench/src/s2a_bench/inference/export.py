"""Exports an adapter, compared on images of the user, or on rendered ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import s2a
import torch
from PIL import Image
from torch import Tensor

from s2a_bench.data.mini.tasks import RENDERED
from s2a_bench.errors import InputError
from s2a_bench.inference.predict import load_adapter, read_image

COMPARED = 16
"""Images that are compared, at most: evenly spaced among those given."""

COUNT = 8
"""Images of an embedded task that are rendered where none are given."""


def export_adapter(
    adapter: str, path: Path, format: Any, images: Sequence[str] = (), weights: Path | None = None
) -> s2a.ExportReport:
    """Loads an adapter on the CPU and exports it, see ``s2a.export``.

    Args:
        adapter: Folder or hub id.
        path: Of the file or folder.
        format: ``timm``, ``onnx`` or ``torch``.
        images: Image files to compare on; empty: rendered ones.
        weights: Of the backbone; ``None``: as the adapter says.

    Raises:
        InputError: None of the images can be read.
        S2AError: As ``s2a.from_pretrained`` and ``s2a.export``.
    """
    adapted = load_adapter(adapter, weights, "cpu")
    return s2a.export(adapted, path, format, images=_read(adapted, images) if images else _render(adapted))


def _read(adapted: s2a.Adapted, paths: Sequence[str]) -> Tensor:
    transform = adapted.transform()
    chosen = [paths[i * len(paths) // COMPARED] for i in range(COMPARED)] if len(paths) > COMPARED else paths
    read, first = [], None
    for path in chosen:
        try:
            read.append(read_image(path, transform))
        except ValueError as error:
            first = first or error
    if not read:
        raise InputError(f"None of the images can be read; the first: {first}")
    return torch.stack(read)


def _render(adapted: s2a.Adapted) -> Tensor:
    classes, render = RENDERED["count"]
    arrays = render(np.random.default_rng(0), np.arange(COUNT) % classes)
    transform = adapted.transform()
    return torch.stack([transform(Image.fromarray(array.transpose(1, 2, 0))) for array in arrays])

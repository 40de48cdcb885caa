"""A program of ``torch.export``: weights and graph in one file, for any batch size, run by torch alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2a.adapted import Adapted
from s2a.errors import S2AError
from s2a.exporting.description import facts_of, first_line, input_shape


def trace(adapted: Adapted) -> Any:
    """The graph of a model in evaluation mode, for any number of images.

    The example has two images: torch takes a size of one for a constant.

    Raises:
        S2AError: It cannot be traced.
    """
    images = torch.zeros(2, *input_shape(adapted), device="cpu")
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            return torch.export.export(adapted, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:
        raise S2AError(
            f"torch.export cannot trace this model under {adapted.name!r} ({first_line(error)}); change what its "
            "forward pass does there, or choose format 'timm' if the method merges."
        ) from error


def write_torch(adapted: Adapted, path: Path) -> list[Callable[[Tensor], Tensor]]:
    """Writes the program with its facts as extra files ``labels``, ``image`` and ``method``, each JSON.

    Args:
        adapted: In evaluation mode, float32 on the CPU.
        path: A ``.pt2`` file.

    Returns:
        What was written, loaded by torch.

    Raises:
        S2AError: The model cannot be traced.
    """
    program = trace(adapted)
    with warnings.catch_warnings(action="ignore"):
        torch.export.save(program, path, extra_files=facts_of(adapted))
        loaded: Any = torch.export.load(path).module()
    return [loaded]

"""An ONNX model, for any batch size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2a.adapted import Adapted
from s2a.errors import S2AError
from s2a.exporting.description import facts_of, first_line
from s2a.exporting.torch_file import trace

OPSET = 18
"""Version of ONNX's operators: the one that torch's exporter is written in; runtimes from 2023 on have it."""

WHOLE_LIMIT = 1_800_000_000
"""Bytes of weights that fit into the file itself (Protobuf ends at 2 GiB); larger ones lie beside it, ``NAME.data``."""

INPUT, OUTPUT = "images", "logits"
"""Names in the graph."""


def check_packages() -> None:
    """Checks that what writes and runs ONNX is installed.

    Raises:
        S2AError: It is not.
    """
    needed = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise S2AError(
            f"Format 'onnx' needs {', '.join(needed)}; not installed: {', '.join(missing)}. pip install 's2a[onnx]'"
        )


def write_onnx(adapted: Adapted, path: Path) -> list[Callable[[Tensor], Tensor]]:
    """Writes the model with its facts in ``metadata_props``: ``labels``, ``image`` and ``method``, each JSON.

    Args:
        adapted: In evaluation mode, float32 on the CPU.
        path: A ``.onnx`` file; weights too large for it are put beside it.

    Returns:
        What was written, as onnxruntime runs it on the CPU.

    Raises:
        S2AError: The model cannot be traced, or has an operation that ONNX lacks.
    """
    program = trace(adapted)
    logs = logging.getLogger("torch.onnx")
    level = logs.level
    logs.setLevel(logging.ERROR)  # It reports on every pass.
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            made: Any = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
    except Exception as error:
        raise S2AError(
            f"The model under {adapted.name!r} cannot be said in ONNX ({first_line(error)}); choose format 'torch'."
        ) from error
    finally:
        logs.setLevel(level)
    made.model.metadata_props.update(facts_of(adapted))
    size = sum(p.numel() * p.element_size() for p in adapted.parameters())
    with warnings.catch_warnings(action="ignore"):
        made.save(path, external_data=size > WHOLE_LIMIT)
    return [_session(path)]


def _session(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return run

"""Exports an adapted model: writes it under another name, compares it, and only then gives it its name."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from s2a.adapted import Adapted, require_adapted
from s2a.errors import S2AError
from s2a.exporting import onnx_file, timm_file, torch_file
from s2a.exporting.compare import TOLERANCE, float32_copy, images_to_compare, largest_difference
from s2a.exporting.description import labels_of
from s2a.pretrained.folder import replacing_folder

Format = Literal["timm", "onnx", "torch"]
SUFFIXES = {"timm": ".safetensors", "onnx": ".onnx", "torch": ".pt2"}
"""Format -> suffix of its file; of ``timm`` a name without a suffix is a folder."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the adapted model.

    Attributes:
        path: The file or folder.
        largest_difference: Of a logit, over all images, alone and in a batch.
        images: How many were compared.
        real_images: They were given; False: a fixed batch of noise was used.
        format: ``timm``, ``onnx`` or ``torch``.
        tolerance: What the difference may be, in units of the largest logit, or of 1 where all are smaller.
    """

    path: Path
    largest_difference: float
    images: int
    real_images: bool
    format: str
    tolerance: float = TOLERANCE


def export(
    adapted: Adapted,
    path: str | os.PathLike[str],
    format: Format = "timm",
    *,
    images: Tensor | None = None,
    backbone: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Writes an adapted model as a file that runs without this library, once it was found to give the same logits.

    All formats take any N and are float32, whatever the model's number format: its logits in float32 are the measure.

    * ``timm``: the merged model as a plain checkpoint, where the method merges (see ``merge``). A folder in the layout
      of timm's models on the hub (``timm.create_model("local-dir:FOLDER", pretrained=True)``), or a ``.safetensors``
      file (``timm.create_model(NAME, checkpoint_path=FILE, num_classes=K)``; name and arguments are in its metadata).
    * ``onnx``: a ``.onnx`` file, input ``images`` ``(N, 3, H, W)``, output ``logits`` ``(N, K)``. Extra ``s2a[onnx]``.
    * ``torch``: a ``.pt2`` file for ``torch.export.load``.

    Class names and image format are in the file: timm's config, ONNX's ``metadata_props``, the extra files of the
    program.

    Args:
        adapted: What ``attach``, ``load`` or ``from_pretrained`` returned; it does not change.
        path: Of the file or folder; an earlier export there is replaced.
        format: See above.
        images: ``(N, 3, H, W)`` as the model takes them, to compare on; ``None``: a fixed batch of noise.
        backbone: ``{"name": timm's name, "args": arguments of timm.create_model}`` for ``timm``, where the model itself
            does not say how it was built.

    Returns:
        What was compared.

    Raises:
        S2AError: Not an adapted model, a method that does not merge, a path or images that do not fit, packages that
            are missing, or logits that differ; nothing is left at ``path``, and what was there stays.
    """
    adapted = require_adapted("export", adapted)
    target = _checked_path(path, format)
    if not getattr(adapted.backbone, "s2a_method", None):
        raise S2AError("The model was detached; export it before.")
    if format == "onnx":
        onnx_file.check_packages()
    labels_of(adapted)  # Says what is wrong with them before anything is copied.
    batch = images_to_compare(adapted, images)
    copied = float32_copy(adapted)
    folder = format == "timm" and target.suffix != SUFFIXES[format]
    with (replacing_folder if folder else _replacing_files)(target) as made:
        loaded: list[Callable[[Tensor], Tensor]]
        if format == "timm":
            loaded = timm_file.write_timm(copied, made, backbone)
        else:
            loaded = (onnx_file.write_onnx if format == "onnx" else torch_file.write_torch)(copied, made)
        found = [largest_difference(copied, each, batch, f"The {format} export") for each in loaded]
        del loaded  # Some systems do not rename what is open.
    return ExportReport(target, max(found), len(batch), images is not None, format)


def _checked_path(path: str | os.PathLike[str], format: str) -> Path:
    if format not in SUFFIXES:
        raise S2AError(f"format={format!r} is unknown; choose one of {', '.join(SUFFIXES)}.")
    try:
        target = Path(path).absolute()
    except TypeError:
        raise S2AError(f"export takes a path, not {type(path).__name__}.") from None
    if "\0" in str(target):
        raise S2AError(f"{str(target)!r} has a zero byte in it, which no path can have; export elsewhere.")
    if not target.parent.is_dir():
        raise S2AError(f"{target.parent} is not a folder; create it, or export elsewhere.")
    suffix = SUFFIXES[format]
    if format == "timm" and target.suffix != suffix:
        held = {part.name for part in target.iterdir()} if target.is_dir() else set()
        others = sorted(held - {timm_file.WEIGHTS, timm_file.CONFIG})
        if others or (target.exists() and not target.is_dir()):
            wrong = f"holds other files ({others[0]})" if others else "is a file"
            raise S2AError(f"{target} {wrong}; give a new folder, or a path that ends in {suffix}.")
    elif target.suffix != suffix:
        raise S2AError(f"{target} must end in {suffix}, as files of format {format!r} do.")
    elif target.is_dir():
        raise S2AError(f"{target} is a folder; give the path of a file.")
    return target


@contextlib.contextmanager
def _replacing_files(target: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder; what lies in that folder at the end is moved beside ``target``."""
    try:
        temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise S2AError(f"{target} cannot be written ({error.strerror or error}); export elsewhere.") from error
    with temporary as folder:
        made = Path(folder, target.name)
        yield made
        for part in sorted(Path(folder).iterdir(), key=lambda part: part == made):  # the one with the name last
            part.replace(target.parent / part.name)

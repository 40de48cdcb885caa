"""The file of a saved method: safetensors, with all that is needed to put it on its backbone again in the header.

Header of format 2 (safetensors' metadata: names and values are strings)::

    format        "2"
    method        registered name
    config        JSON object of the method's config
    num_classes   outputs of the head; "0": none that could be told
    image_size    JSON [height, width]
    head          JSON {"kind": "linear", "bias": true}, {"kind": "none"} or {"kind": "own", "form": "Sequential(...)"}
    changed       JSON object: backbone tensors in the file beyond the method's own (norm statistics that training
                  moved, layers that were unfrozen after attach) -> whether they trained
    architecture  timm's name of the backbone
    backbone_id   ``Identity.id``
    backbone      JSON object of the identity (``identity.pack``)
    checksum      hash of method ... changed and of all tensors

Format 1 had neither head, changed, backbone nor checksum, and a ``backbone_id`` of the exact values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s2a.errors import S2AError

FORMAT = "2"
_FORMATS = ("1", "2")
_SUMMED = ("method", "config", "num_classes", "image_size", "head", "changed")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""safetensors' names of floating-point dtypes -> torch's."""
_OTHERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


@dataclasses.dataclass(frozen=True)
class SavedFile:
    """A file's header, checked for form, and what it says of its tensors; values are read by ``tensors``.

    Attributes:
        path: The file.
        format: ``"1"`` or ``"2"``.
        header: As it is in the file.
        method: Name of the method.
        config: Its options.
        num_classes: Of the head; 0: unknown.
        image_size: Height and width.
        head: See the module.
        changed: See the module; ``None`` in format 1, which does not say.
        backbone: See the module; ``None`` in format 1.
        shapes: Name of every tensor -> its dtype as ``"float32"`` (safetensors' own name for others) and shape.
    """

    path: Path
    format: str
    header: dict[str, str]
    method: str
    config: dict[str, Any]
    num_classes: int
    image_size: list[int]
    head: dict[str, Any]
    changed: dict[str, bool] | None
    backbone: dict[str, Any] | None
    shapes: dict[str, tuple[str, tuple[int, ...]]]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors.

        Raises:
            S2AError: The file cannot be read, or is damaged.
        """
        with _opened(self.path) as file:
            tensors = {name: file.get_tensor(name) for name in self.shapes}
        if self.format != "1" and self.header.get("checksum") != checksum(self.header, tensors):
            raise S2AError(f"{self.path} is damaged: its checksum is not that of its content; take another copy.")
        return tensors


def write(path: Path, header: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Writes a file, whole or not at all; ``checksum`` is added to the header."""
    header = {**header, "checksum": checksum(header, tensors)}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=header)
        _sort_header(Path(temporary))
        Path(temporary).chmod(0o644)  # Both mkstemp and safetensors write for the owner alone.
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sort_header(path: Path) -> None:
    """Puts the header's entries in the order of their names: safetensors writes them in another one every time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # Always so: the same entries, without spaces.
            file.seek(8)
            file.write(text.ljust(length))


def read(path: str | os.PathLike[str]) -> SavedFile:
    """Header and names of a file.

    Raises:
        S2AError: No such file, or not written by ``s2a.save``, or its header is damaged.
    """
    try:
        target = Path(path)
    except TypeError:
        raise S2AError(f"load takes the path of what s2a.save wrote, not {type(path).__name__}.") from None
    with _opened(target) as file:
        header = file.metadata() or {}
        shapes = {}
        for name in file.keys():
            part = file.get_slice(name)
            dtype = str(part.get_dtype())
            shapes[name] = ({**FLOATS, **_OTHERS}.get(dtype, dtype), tuple(part.get_shape()))
    if (form := header.get("format")) not in _FORMATS:
        raise S2AError(f"{target} was not written by s2a.save (format {form!r}, expected '1' or '2').")
    first = form == "1"
    try:
        found = SavedFile(
            target,
            form,
            header,
            header["method"],
            _json(header["config"], dict),
            int(header["num_classes"]),
            _json(header["image_size"], list),
            {"kind": "linear", "bias": True} if first else _json(header["head"], dict),
            None if first else _json(header["changed"], dict),
            None if first else _json(header["backbone"], dict),
            shapes,
        )
        _ = header["architecture"], header["backbone_id"], first or header["checksum"]
        sides = found.image_size
        if len(sides) != 2 or any(type(side) is not int or not 1 <= side <= 100_000 for side in sides):
            raise ValueError(f"image_size {sides}")
        if found.head.get("kind") not in ("linear", "none", "own"):
            raise ValueError(f"head {found.head}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise S2AError(
            f"{target} is damaged: its header has no usable {_said(error)}; take another copy, or save again."
        ) from error
    return found


def checksum(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """32 hex digits over what decides the function in the header, and over all tensors."""
    digest = hashlib.sha256(json.dumps([header.get(key) for key in _SUMMED]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def not_finite(tensors: dict[str, Tensor], infinite: set[str]) -> list[str]:
    """Names of tensors with NaN, or with infinity where their name is not in ``infinite``."""
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and bool((tensor.isnan() if name in infinite else ~tensor.isfinite()).any())
    ]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, ValueError, SafetensorError, MemoryError, RuntimeError) as error:
        if isinstance(error, S2AError):
            raise
        raise S2AError(f"{path} cannot be read as a saved method ({error}); take another copy.") from error


def _json(text: str, kind: type) -> Any:
    value = json.loads(text)
    if not isinstance(value, kind):
        raise ValueError(f"{kind.__name__} in {text[:40]!r}")
    return value


def _said(error: Exception) -> str:
    return "value (it is nested too deeply)" if isinstance(error, RecursionError) else str(error)

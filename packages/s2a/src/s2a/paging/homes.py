"""Where a paged weight's values lie: pinned host memory, or a memory-mapped safetensors file."""

from __future__ import annotations

import bisect
import contextlib
import json
import mmap
import os
import secrets
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2a.errors import S2AError

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def pinned(tensor: Tensor) -> Tensor:
    """A copy in page-locked host memory, from which a card copies by itself.

    Raises:
        S2AError: The system gives none.
    """
    try:
        home = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    except RuntimeError as error:
        size, reason = tensor.nbytes / 1e6, str(error).partition("\n")[0]
        raise S2AError(
            f"{size:.1f} MB of pinned host memory for a paged weight cannot be had ({reason}); free host memory, or "
            "keep the paged weights in a file (s2a.page_frozen with store=PATH)."
        ) from error
    return home.copy_(tensor.detach())


def in_temporary_file(tensor: Tensor) -> Tensor:
    """A copy in a memory-mapped temporary file, which no folder names: it goes with the tensor.

    Raises:
        S2AError: A dtype that no file holds.
    """
    with tempfile.TemporaryFile(prefix="s2a-") as file:
        _write(file, {"weight": tensor})
        return _mapped(file)["weight"]


def in_file(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in a memory-mapped safetensors file, each on a storage of its own.

    The mapping is copy-on-write: what is written into such a tensor stays in memory and leaves the file as it is.

    Args:
        path: Of the file. If it is there already, it must hold the same values, and is used as it is.
        tensors: Name -> values.

    Raises:
        S2AError: It cannot be written, or holds something else.
    """
    try:
        if not path.exists():
            # Another process may write the same file: each writes its own, and the last to rename it wins.
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # tempfile's are the owner's alone.
            try:
                with temporary.open("xb") as file:
                    _write(file, tensors)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        with path.open("rb") as file:
            found = _mapped(file)
    except S2AError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise S2AError(f"{path} cannot hold paged weights ({reason}); give the path of a new file.") from error
    if found.keys() != tensors.keys() or not all(_are_same(found[name], tensors[name]) for name in tensors):
        raise S2AError(f"{path} is there and holds other weights; give the path of a new file.")
    return found


def _are_same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same to the bit: a NaN is itself."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    return torch.equal(_bytes(found), _bytes(expected))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def _write(file: Any, tensors: Mapping[str, Tensor]) -> None:
    """The format of https://github.com/huggingface/safetensors, one tensor after the other.

    Raises:
        S2AError: A dtype that has no name there.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise S2AError(
                f"A frozen weight of {tensor.dtype} cannot be paged to a file; cast the backbone to one of "
                f"{', '.join(map(str, _NAMES))} first."
            )
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # Length and header are a multiple of 64 bytes.
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        file.write(_bytes(tensor).numpy().data)
    file.flush()


def _mapped(file: Any) -> dict[str, Tensor]:
    """The tensors of an open safetensors file; the mapping lives as long as they do."""
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (length,) = struct.unpack("<Q", view[:8])
    header = json.loads(view[8 : 8 + length])
    kinds = {name: dtype for dtype, name in _NAMES.items()}
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in kinds:
            raise ValueError(f"{name} is of dtype {entry['dtype']}")
        start, end = entry["data_offsets"]
        dtype = kinds[entry["dtype"]]
        values = torch.frombuffer(view, dtype=dtype, count=(end - start) // dtype.itemsize, offset=8 + length + start)
        found[name] = values.view(entry["shape"])
    return found


def are_mapped(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each tensor lies in a memory-mapped file; ``False`` where the system does not say (only Linux does)."""
    areas: list[tuple[int, int]] = []
    with contextlib.suppress(OSError), open("/proc/self/maps") as lines:  # noqa: PTH123  (no file, and read at once)
        for line in lines:
            span, _, _, _, inode, *_ = line.split()
            if inode != "0":
                start, end = span.split("-")
                areas.append((int(start, 16), int(end, 16)))
    found = []
    for tensor in tensors:
        start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        i = bisect.bisect(areas, (start, 1 << 64)) - 1
        found.append(tensor.device.type == "cpu" and i >= 0 and start + size <= areas[i][1])
    return found


def checked_path(store: Any) -> Path:
    """The path of a file for paged weights.

    Raises:
        S2AError: It is none.
    """
    try:
        path = Path(os.fspath(store)).absolute()
    except TypeError:
        raise S2AError(f"store={store!r} must be 'host', or the path of a .safetensors file.") from None
    if path.suffix != ".safetensors":
        raise S2AError(f"store={str(store)!r} must be 'host', or the path of a file that ends in .safetensors.")
    if not path.parent.is_dir():
        raise S2AError(f"{path.parent} is not a folder; create it, or give another path for the paged weights.")
    return path

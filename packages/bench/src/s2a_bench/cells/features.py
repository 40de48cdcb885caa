"""Features of a frozen backbone, computed once: the head of ``linear`` then trains on them instead of on images.

A method says on its class that its features are a fixed function of the image (``fixed_features``). Where training sees
every image the same way in every epoch, the backbone then runs once over the training images and once over the scored
ones. The files lie under the output folder, so that seeds, trials and processes share them; they can be deleted.

Layout of a file ``<hash of the identity>.f32``: ``N x C`` float32 in the order of the list, then 32 bytes, the SHA-256
of the identity's JSON and these numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import s2a
import torch
from torch import Tensor, nn

from s2a_bench.cells.source_code import code_id
from s2a_bench.cells.train import Images, precision, train
from s2a_bench.config import TrainConfig
from s2a_bench.files import replacing

FILE_LIMIT = 2_000_000_000
"""Largest list of features, in bytes: beyond it the backbone runs in every epoch."""

FOLDER_LIMIT = 8_000_000_000
"""Largest cache folder, in bytes: the files that were not used for longest make room."""

BATCH = 128
"""Images per forward pass, as ``scores.accuracy`` takes them."""

_DIGEST = 32


class HeadOnly(nn.Module):
    """The head of an adapted model, for features in place of images; the parameters are the same objects.

    Attributes:
        head: As in ``s2a.Adapted``, so that the recipe's ``head_lr`` finds it.
        method: Names the code that a checkpoint belongs to.
    """

    def __init__(self, adapted: s2a.Adapted) -> None:
        super().__init__()
        self.head = adapted.head
        self.method = adapted.method

    def forward(self, features: Tensor) -> Tensor:
        """Logits of ``(B, C)`` features."""
        return self.head(features)


class Features:
    """Features and labels in the order of their images, in place of images (see ``train.Images``).

    Attributes:
        labels: ``(N,)`` int64.
        from_file: Whether an earlier cell's file was used.
    """

    def __init__(self, labels: Tensor, array: np.ndarray, from_file: bool) -> None:
        self.labels = labels
        self.from_file = from_file
        self._array = array

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Float32 features ``(B, C)`` at ``(B,)`` int64 indices; nothing is drawn."""
        return torch.from_numpy(np.asarray(self._array[indices.cpu().numpy()]))


def usable(adapted: s2a.Adapted, data_config: Mapping[str, Any], count: int) -> bool:
    """Whether a cell's head can train on features.

    Args:
        adapted: The adapted model.
        data_config: Of the loaded data: augmented images have other features in every epoch.
        count: Images of the longer list.
    """
    own = next(adapted.method.parameters(), None) is not None  # a claim that cannot be true
    head: Any = adapted.head
    size = count * head.in_features * 4
    augmented = data_config.get("augment", "none") != "none"
    return adapted.method.fixed_features and not own and not augmented and size <= FILE_LIMIT


def key(facts: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What decides the features of a cell's lists: facts of its identity, and the source code.

    The seed counts where random weights are drawn from it, the kind of device because devices round differently.

    Args:
        facts: ``identity.IdentifiedCell.facts``.
        device: torch device.
    """
    names = ("suite", "dataset", "data_id", "split_id", "evaluate", "limits", "backbone", "checkpoint_id", "format")
    kept = {name: facts[name] for name in (*names, "method", "method_config")}
    return {
        **kept,
        "precision": facts["train"]["precision"],
        "seed": facts["seed"] if facts["checkpoint_id"] == "random" else None,
        "device": torch.device(device).type,
        "torch": torch.__version__,
        "code": code_id(),
    }


def compute(
    adapted: s2a.Adapted, images: Images, config: TrainConfig, identity: Mapping[str, Any], folder: Path | None
) -> Features:
    """The features of a list of images: from the cache, or from one pass of the backbone, which is then kept.

    Args:
        adapted: Its backbone runs in evaluation mode and the recipe's precision, without gradient.
        images: The list; not opened if the cache has it.
        config: The recipe.
        identity: ``key``, with the list's name.
        folder: Of the cache; ``None``: nothing is kept. A folder that cannot be written costs the file only.

    Raises:
        InputError: An image that is decoded now is missing, damaged, or not the one that was prepared.
    """
    head: Any = adapted.head
    width: int = head.in_features
    path = folder and folder / f"{_name(identity)}.f32"
    if path is not None and (array := _open(path, identity, len(images), width)) is not None:
        with contextlib.suppress(OSError):
            os.utime(path)  # last used
        return Features(images.labels, array, from_file=True)
    array = np.empty((len(images), width), np.float32)
    for start, part in _passes(adapted, images, config):
        array[start : start + len(part)] = part
    if path is not None:
        with contextlib.suppress(OSError):
            _write(path, identity, array)
    return Features(images.labels, array, from_file=False)


def _passes(adapted: s2a.Adapted, images: Images, config: TrainConfig) -> Iterator[tuple[int, np.ndarray]]:
    device = next(adapted.parameters()).device
    training = adapted.training
    adapted.eval()
    try:
        with torch.inference_mode(), precision(config, device):
            for indices in torch.arange(len(images)).split(BATCH):
                part = adapted.method(adapted.backbone, images.batch(indices).to(device))
                yield int(indices[0]), part.float().cpu().numpy()
    finally:
        adapted.train(training)


def _name(identity: Mapping[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _digest(identity: Mapping[str, Any], array: np.ndarray) -> bytes:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    digest.update(memoryview(array).cast("B"))  # type: ignore[arg-type]
    return digest.digest()


def _open(path: Path, identity: Mapping[str, Any], count: int, width: int) -> np.ndarray | None:
    """The mapped file; ``None`` if it is absent, damaged, or not what its name says: it is made again."""
    try:
        if path.stat().st_size != 4 * count * width + _DIGEST:
            return None
        array = np.memmap(path, np.float32, "r", shape=(count, width))
        stored = np.fromfile(path, np.uint8, offset=4 * count * width).tobytes()
        return array if stored == _digest(identity, array) else None
    except (OSError, ValueError):
        return None


def _write(path: Path, identity: Mapping[str, Any], array: np.ndarray) -> None:
    """Writes a file, whole or not at all; two processes write the same bytes and either one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.nbytes > shutil.disk_usage(path.parent).free // 2:
        return
    _make_room(path.parent, array.nbytes)
    with replacing(path) as file:
        file.write(array.data)
        file.write(_digest(identity, array))


def _make_room(folder: Path, wanted: int) -> None:
    """Removes the files used longest ago; who has mapped one keeps what was in it."""
    files = []
    for path in folder.glob("*.f32"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            stat = path.stat()
            files.append((stat.st_mtime_ns, stat.st_size, path))
    total = wanted + sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= FOLDER_LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= size


# --- The speed of the steps that features replace --------------------------------------------------------------------


class _First:
    """The first images of a list, over and over."""

    def __init__(self, images: Images, count: int) -> None:
        self.labels, self.batch = images.labels[:count], images.batch

    def __len__(self) -> int:
        return len(self.labels)


def step_speed(
    adapted: nn.Module,
    images: Images,
    config: TrainConfig,
    seconds: float = 0.3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Images per second of real training steps on one batch, loading included; what trains is put back afterwards.

    Args:
        adapted: The model.
        images: Of which the first batch is used.
        config: The recipe.
        seconds: About how long to measure, after one step to warm up; at least one step.
        clock: For tests.
    """
    first = _First(images, min(config.batch_size, len(images)))
    trained = [(p, p.detach().clone()) for p in adapted.parameters() if p.requires_grad]
    buffers = [(b, b.detach().clone()) for b in adapted.buffers()]
    training, once = (
        adapted.training,
        dataclasses.replace(config, epochs=1_000, warmup_epochs=0, lr=1e-12, head_lr=None),
    )
    rates, began = [], None
    try:
        for metrics in train(adapted, first, once, 0):
            if began is None:
                began = clock()
                continue
            rates.append(metrics["images_per_second"])
            if clock() - began >= seconds:
                break
    finally:
        adapted.train(training)
        with torch.no_grad():
            for tensor, value in (*trained, *buffers):
                tensor.copy_(value)
                tensor.grad = None
    return float(np.median(rates))

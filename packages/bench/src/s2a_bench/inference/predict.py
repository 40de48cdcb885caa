"""Class names and probabilities of images, batch by batch."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import s2a
import torch
from s2a.image_transform import ImageTransform
from torch import Tensor

from s2a_bench.data.images import MAX_PIXELS, decode_rgb, read_image_bytes
from s2a_bench.errors import InputError
from s2a_bench.failures import out_of_memory
from s2a_bench.inference.checks import Progress
from s2a_bench.inference.prediction import Prediction

_AHEAD = 2
"""Batches that are decoded while one runs."""


def load_adapter(adapter: str, weights: Path | None, device: str) -> s2a.Adapted:
    """The adapted model in evaluation mode.

    Args:
        adapter: Folder or hub id.
        weights: Of the backbone; ``None``: as the adapter says.
        device: A torch device, or ``auto``: a GPU if there is one.

    Raises:
        S2AError: As ``s2a.from_pretrained``.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return s2a.from_pretrained(adapter, weights=weights, device=device)


def predictions(
    adapted: s2a.Adapted, paths: Sequence[str], top: int, batch_size: int, progress: Progress | None = None
) -> Iterator[Prediction]:
    """Predictions in the order of the paths; a bad image has its error in place of a label.

    Args:
        adapted: In evaluation mode.
        paths: Image files.
        top: Classes per image; all where the adapter has fewer.
        batch_size: Images at once.
        progress: Told after each batch.

    Raises:
        S2AError: The model takes no RGB images.
        InputError: Memory ran out, or the logits are not finite.
    """
    transform = adapted.transform()
    names = adapted.labels or [str(number) for number in range(adapted.num_classes)]
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    waiting: collections.deque[tuple[Sequence[str], list[Future[Tensor]]]] = collections.deque()
    threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")
    done = 0
    try:
        for number in range(len(batches) + _AHEAD):
            if number < len(batches):
                waiting.append((batches[number], [threads.submit(read_image, p, transform) for p in batches[number]]))
            if number >= _AHEAD or number >= len(batches):
                if not waiting:
                    break
                part, futures = waiting.popleft()
                yield from _predict_batch(adapted, part, futures, names, top)
                done += len(part)
                if progress is not None:
                    progress(done, len(paths))
    finally:
        threads.shutdown(cancel_futures=True)


def read_image(path: str, transform: ImageTransform) -> Tensor:
    """One image as the model takes it, ``(3, H, W)``.

    Raises:
        InputError: It cannot be read.
    """
    return to_input(read_image_bytes(Path(path)), path, transform)


def to_input(data: bytes, name: str, transform: ImageTransform) -> Tensor:
    """The content of an image file as the model takes it, ``(3, H, W)``; ``name`` is for errors.

    Raises:
        InputError: It cannot be read.
    """
    image = decode_rgb(data, name, upright=True)
    short, long = sorted(image.size)
    if transform.resize == "crop" and long * max(transform.sides) ** 2 > short * MAX_PIXELS:
        raise InputError(f"Image {name} is too narrow ({image.width} x {image.height} pixels); cut a part out of it.")
    return transform(image)


def _predict_batch(
    adapted: s2a.Adapted, paths: Sequence[str], futures: Sequence[Future[Tensor]], names: Sequence[str], top: int
) -> Iterator[Prediction]:
    images: dict[int, Tensor] = {}
    errors: dict[int, str] = {}
    for number, future in enumerate(futures):
        try:
            images[number] = future.result()
        except ValueError as error:  # InputError, and S2AError of the transform
            errors[number] = str(error)
    ranked: dict[int, list[tuple[str, float]]] = {}
    if images:
        probabilities = _probabilities(adapted, torch.stack(list(images.values())))
        values, classes = probabilities.sort(dim=1, descending=True, stable=True)
        for number, row, order in zip(images, values[:, :top].tolist(), classes[:, :top].tolist(), strict=True):
            ranked[number] = [(str(names[index]), float(value)) for index, value in zip(order, row, strict=True)]
    for number, path in enumerate(paths):
        if number in errors:
            yield Prediction(path, None, None, [], errors[number])
        else:
            label, probability = ranked[number][0]
            yield Prediction(path, label, probability, ranked[number])


def _probabilities(adapted: s2a.Adapted, images: Tensor) -> Tensor:
    """``(N, K)`` float64 on the CPU."""
    device = next(adapted.parameters()).device
    try:
        with torch.no_grad():
            logits = adapted(images.to(device)).double().cpu()
    except Exception as error:
        if out_of_memory(error):
            raise InputError(
                f"Memory ran out on {device} with {len(images)} images at once; give a smaller --batch-size."
            ) from error
        raise
    if not bool(logits.isfinite().all()):
        raise InputError("The adapter's logits are not finite: its training diverged; take another one.")
    return logits.softmax(dim=1)

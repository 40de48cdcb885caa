"""Images of many tasks in one pass, and what comes out of it. Nothing here waits; the replica says when and where."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Sequence

import s2a
import torch
from s2a.image_transform import ImageTransform
from torch import Tensor

from s2a_bench.errors import InputError
from s2a_bench.failures import out_of_memory
from s2a_bench.inference.predict import to_input
from s2a_bench.serving.cache import Loaded, TaskCache
from s2a_bench.serving.reply import Found, Lost, Row
from s2a_bench.serving.request import ServeRequest

_LOG = logging.getLogger("ray.serve")


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """An image on its way.

    Attributes:
        task: Held by whoever made the item.
        image: ``(3, H, W)``.
        top: Classes that are asked for.
    """

    task: Loaded
    image: Tensor
    top: int


class Passes:
    """The backbone and the tasks on it.

    Args:
        request: The service.

    Raises:
        S2AError: The backbone cannot be had.
    """

    def __init__(self, request: ServeRequest) -> None:
        torch.set_num_threads(request.threads)
        backbone = s2a.backbone_of(request.backbone_from, weights=request.weights, device=request.device)
        self._device = torch.device(request.device)
        self._dtype = next(p.dtype for p in backbone.parameters() if p.is_floating_point())
        self._multi = s2a.MultiTask(backbone)
        self.cache = TaskCache(self._multi, request.limits.task_bytes)

    def run(self, items: Sequence[Item]) -> list[Found | Lost]:
        """What comes out for each image; images of one size share a pass."""
        found: dict[Item, Found | Lost] = {}
        sizes: dict[tuple[int, ...], list[Item]] = collections.defaultdict(list)
        for item in items:
            sizes[tuple(item.image.shape)].append(item)
        for part in sizes.values():
            found |= self._pass(part)
        return [found[item] for item in items]

    def _pass(self, items: Sequence[Item]) -> dict[Item, Found | Lost]:
        try:
            images = torch.stack([item.image for item in items]).to(self._device, self._dtype)
            logits = self._multi(images, [item.task.key for item in items])
        except Exception as error:
            if out_of_memory(error):
                sentence = f"Memory ran out with {len(items)} images at once; start with a smaller --batch-size."
                return dict.fromkeys(items, Lost("unavailable", sentence))
            return self._apart(items, error)
        return {item: self._read(item, row, len(items)) for item, row in zip(items, logits, strict=True)}

    def _apart(self, items: Sequence[Item], error: Exception) -> dict[Item, Found | Lost]:
        """The same task by task after a fault, so that only the task that has it is without an answer."""
        tasks: dict[str, list[Item]] = collections.defaultdict(list)
        for item in items:
            tasks[item.task.key].append(item)
        if len(tasks) > 1:
            return {item: found for part in tasks.values() for item, found in self._pass(part).items()}
        name = items[0].task.place.name
        _LOG.error("Task %s failed", name, exc_info=error)
        return dict.fromkeys(items, Lost("failed", f"The model of task {name} failed ({type(error).__name__})."))

    def _read(self, item: Item, logits: Tensor, size: int) -> Found | Lost:
        logits = logits.double().cpu()
        if not bool(logits.isfinite().all()):
            name = item.task.place.name
            return Lost("unavailable", f"The logits of task {name} are not finite: its training diverged; replace it.")
        labels = item.task.task.labels or tuple(map(str, range(item.task.task.num_classes)))
        return Found(_rank(logits.softmax(0), labels, item.top), size)


def decode(data: bytes, title: str, transform: ImageTransform) -> Tensor | str:
    """An image as its task takes it, or what is wrong with it."""
    try:
        return to_input(data, title, transform)
    except (InputError, s2a.S2AError) as error:
        return str(error)
    except MemoryError:
        return f"Image {title} does not fit into memory; make it smaller first."


def _rank(probabilities: Tensor, labels: Sequence[str], top: int) -> Row:
    """Of equals the first."""
    values, classes = probabilities.sort(descending=True, stable=True)
    return [(str(labels[c]), float(p)) for c, p in zip(classes[:top].tolist(), values[:top].tolist(), strict=True)]

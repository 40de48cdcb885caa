"""Images of many tasks in one pass, and what comes out of it. Nothing here waits; the replica says when and where."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import s2a
import torch
from s2a.image_transform import ImageTransform
from torch import Tensor

from s2a_bench.errors import InputError
from s2a_bench.failures import out_of_memory
from s2a_bench.inference.predict import to_input
from s2a_bench.serving.cache import Loaded, TaskCache
from s2a_bench.serving.request import ServeRequest


@dataclasses.dataclass(frozen=True)
class Item:
    """An image on its way.

    Attributes:
        task: Held by its request.
        image: ``(3, H, W)``.
    """

    task: Loaded
    image: Tensor


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

    def run(self, items: Sequence[Item]) -> list[tuple[Tensor, int] | str]:
        """Probabilities ``(K,)`` of each image and the number of images in its pass, or what went wrong with it."""
        found: list[tuple[Tensor, int] | str] = [""] * len(items)
        sizes: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
        for row, item in enumerate(items):
            sizes[tuple(item.image.shape)].append(row)
        for rows in sizes.values():
            images = torch.stack([items[row].image for row in rows]).to(self._device, self._dtype)
            try:
                logits = self._multi(images, [items[row].task.key for row in rows])
            except Exception as error:
                if not out_of_memory(error):
                    raise
                for row in rows:
                    found[row] = f"Memory ran out with {len(rows)} images at once; start with a smaller --batch-size."
                continue
            for row, values in zip(rows, logits, strict=True):
                values = values.double().cpu()
                if bool(values.isfinite().all()):
                    found[row] = values.softmax(0), len(rows)
                else:
                    name = items[row].task.place.name
                    found[row] = f"The logits of task {name} are not finite: its training diverged; replace it."
        return found


def decode(data: bytes, title: str, transform: ImageTransform) -> Tensor | str:
    """An image as its task takes it, or what is wrong with it."""
    try:
        return to_input(data, title, transform)
    except (InputError, s2a.S2AError) as error:
        return str(error)
    except MemoryError:
        return f"Image {title} does not fit into memory; make it smaller first."


def rank(probabilities: Tensor, labels: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The most probable classes; of equals the first."""
    values, classes = probabilities.sort(descending=True, stable=True)
    return [(labels[c], p) for c, p in zip(classes[:top].tolist(), values[:top].tolist(), strict=True)]

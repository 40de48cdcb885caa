"""What a replica answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a replica answers.

    Attributes:
        kind: ``ok``; ``unknown`` task; ``bad`` images; ``unavailable``: the task is there and cannot be served.
        rows: Per image the most probable classes and their probabilities.
        sentences: What is wrong.
        batches: Per image, how many images were in its pass.
        replica: Which one.
        loaded: Tasks that it has now.
        bytes: Their memory.
    """

    kind: Literal["ok", "unknown", "bad", "unavailable"]
    rows: Sequence[Sequence[tuple[str, float]]] = ()
    sentences: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    replica: str = ""
    loaded: int = 0
    bytes: int = 0

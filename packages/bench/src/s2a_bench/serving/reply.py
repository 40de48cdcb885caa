"""What a replica answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

Row = Sequence[tuple[str, float]]
"""The most probable classes of an image and their probabilities."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a replica answers.

    Attributes:
        kind: ``ok``; ``unknown`` task; ``bad`` images; ``unavailable``: the task is there and cannot be served;
            ``failed``: a fault.
        rows: Of each image.
        sentences: What is wrong.
        batches: Per image, how many images were in its pass.
        replica: Which one.
        loaded: Tasks that it has now.
        bytes: Their memory.
    """

    kind: Literal["ok", "unknown", "bad", "unavailable", "failed"]
    rows: Sequence[Row] = ()
    sentences: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    replica: str = ""
    loaded: int = 0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Found:
    """What came out of a pass for one image.

    Attributes:
        row: Its classes.
        size: Images in the pass.
    """

    row: Row
    size: int


@dataclasses.dataclass(frozen=True)
class Lost:
    """Why nothing came out.

    Attributes:
        kind: As of a reply.
        sentence: For the client.
    """

    kind: Literal["unavailable", "failed"]
    sentence: str

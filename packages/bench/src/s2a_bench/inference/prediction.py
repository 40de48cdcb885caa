"""What a model says about an image; without torch, for who only names it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says about one image.

    Attributes:
        path: Of the image, as it was given or found.
        label: The most probable class; its number where the adapter has no names; ``None``: the image is bad.
        probability: Of that class, in [0, 1]; ``None``: the image is bad.
        top: The most probable classes and their probabilities, the first one included.
        error: Why the image could not be read; ``None``: it could.
    """

    path: str
    label: str | None
    probability: float | None
    top: list[tuple[str, float]]
    error: str | None = None

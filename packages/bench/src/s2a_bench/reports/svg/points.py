"""One marker of a scatter plot."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mark:
    """A row of a table as a marker.

    Attributes:
        label: Text of its label.
        method: Decides colour and shape.
        x: Above 0 on a logarithmic axis.
        y: Accuracy, percent.
        spread: Standard deviation of ``y``; ``None`` if unknown.
        ghost: Position of a second, hollow marker; ``None``: there is none.
    """

    label: str
    method: str
    x: float
    y: float
    spread: float | None = None
    ghost: float | None = None

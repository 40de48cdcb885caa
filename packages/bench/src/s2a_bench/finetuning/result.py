"""What a fine-tuning returns or raises; without torch, for who only names it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from s2a_bench.cells.record import Record


@dataclasses.dataclass(frozen=True)
class Result:
    """What a fine-tuning left.

    Attributes:
        adapter: The adapter folder: ``s2a.from_pretrained`` and ``s2a-bench predict`` take it.
        metrics: The content of ``metrics.json``, see ``finetuning.metrics``.
        record: The cell's record.
        report: The page.
        labels: Names of the classes, in the order of the model's outputs.
        ran: Whether anything was trained; false where it was finished before.
        tracking_uri: The MLflow store that holds it; ``None``: nothing was tracked.
    """

    adapter: Path
    metrics: dict[str, Any]
    record: Record
    report: Path
    labels: list[str]
    ran: bool = True
    tracking_uri: str | None = None


class FinetuneFailed(RuntimeError):
    """The training failed; its record says why.

    Attributes:
        record: With the cause in ``error``.
    """

    def __init__(self, sentence: str, record: Record) -> None:
        """A failure.

        Args:
            sentence: What happened, and what to do.
            record: The record.
        """
        super().__init__(sentence)
        self.record = record

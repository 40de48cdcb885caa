"""What a fine-tuning chose where the same command could choose otherwise another time: ``<output>/choices.json``.

A batch that fits what is free on a card, and a learning rate that was found: with them the same command is the same
cell and goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from s2a_bench.config import CellConfig
from s2a_bench.files import write_atomic

_FILE = "choices.json"


class Remembered:
    """Choices by what they were made for."""

    def __init__(self, output: Path) -> None:
        """Reads the choices of an output folder; a damaged file holds none.

        Args:
            output: The output folder.
        """
        self._values: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads((output / _FILE).read_text(encoding="utf-8"))
            self._values = found if isinstance(found, dict) else {}
        self._changed = False

    @staticmethod
    def key(what: str, cell: CellConfig, *others: str) -> str:
        """Name of a choice: what is chosen, and a hash of all it depends on but the place of the data."""
        values = dataclasses.asdict(cell)
        del values["data"]["root"]
        text = json.dumps([values, others], sort_keys=True, default=str)
        return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def get(self, key: str) -> dict[str, Any] | None:
        """A choice; ``None``: there is none yet."""
        found = self._values.get(key)
        return found if isinstance(found, dict) else None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Adds a choice."""
        self._values[key], self._changed = json.loads(json.dumps(value)), True

    def save(self, output: Path) -> None:
        """Writes the choices, if there are new ones."""
        if self._changed:
            write_atomic(output / _FILE, json.dumps(self._values, indent=1) + "\n")
            self._changed = False

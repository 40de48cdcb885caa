"""A card's streams for tests of their order on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class FakeCuda:
    """Streams that only write down what they are told."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, int]] = []
        self.events = 0
        self._now = "compute"

    class _Stream:
        def __init__(self, cuda: FakeCuda, name: str) -> None:
            self.cuda, self.name = cuda, name

        def record_event(self) -> int:
            self.cuda.events += 1
            self.cuda.log.append((self.name, "records", self.cuda.events))
            return self.cuda.events

        def wait_event(self, event: int) -> None:
            self.cuda.log.append((self.name, "waits for", event))

    def Stream(self, device: torch.device) -> Any:
        return self._Stream(self, "side")

    def current_stream(self, device: torch.device) -> Any:
        return self._Stream(self, self._now)

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self._now = self._now, stream.name
        yield
        self._now = before

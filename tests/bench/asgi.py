"""Requests to an ASGI application without a server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from s2a_bench.sweeps.ray import runtime

# Whoever imports this imports Ray next, and other tests in the same process start theirs.
runtime.set_switches()


@dataclasses.dataclass
class Answer:
    """What an application sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


async def ask(
    app: Any, method: str, path: str, chunks: bytes | Sequence[bytes] = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """One request, its body in chunks."""
    path, _, query = path.partition("?")
    parts = [chunks] if isinstance(chunks, bytes) else list(chunks)
    waiting = [{"type": "http.request", "body": part, "more_body": i + 1 < len(parts)} for i, part in enumerate(parts)]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path}
    scope |= {"raw_path": path.encode(), "query_string": query.encode(), "headers": raw, "scheme": "http"}
    scope |= {"root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}
    try:
        await app(scope, receive, send)
    except Exception:  # A fault's answer is sent before it is raised on to the server.
        if not sent:
            raise
    start = next(each for each in sent if each["type"] == "http.response.start")
    body = b"".join(each.get("body", b"") for each in sent if each["type"] == "http.response.body")
    return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body)

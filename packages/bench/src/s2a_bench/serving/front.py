"""The HTTP address: who may ask, what a request may hold, and which answer it gets."""

from __future__ import annotations

import asyncio
import difflib
import hmac
import json
import logging
import time
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from s2a_bench.errors import InputError
from s2a_bench.serving.body import Refused, Source, fetch, find_sources, read_body
from s2a_bench.serving.catalogue import Place, find_soon, read_facts
from s2a_bench.serving.counts import Counts
from s2a_bench.serving.reply import Reply
from s2a_bench.serving.request import ServeRequest, is_loopback

TASKS = "/v1/tasks"
_STATUS = {"unknown": 503, "bad": 422, "unavailable": 503, "failed": 500}
_TRIES = 3
"""Replicas that a request is given to, one after the other, if they die."""
_RECENT_SECONDS, _HEALTH_SECONDS = 30.0, 10.0
"""A reply as recent as the first says that models answer; else they are asked, for as long as the second."""
_LAST_SECONDS = 0.3
"""For the last answers to leave."""
_MOST_CLASSES = 1000
_MOST_NAMES = 500
"""Names among which near ones are looked for."""
_LOG = logging.getLogger("ray.serve")


class Pending(Protocol):
    """A reply on its way, as Serve's handles give it."""

    def __await__(self) -> Any:
        """The reply."""

    def cancel(self) -> Any:
        """Ends the request in its replica."""


class Front:
    """What is behind the address.

    Args:
        model: The replicas: a handle of the deployment ``Model``.
        request: The service.
    """

    def __init__(self, model: Any, request: ServeRequest) -> None:
        self._model = model
        self._request = request
        self._catalogue = request.catalogue
        self._counts = Counts()
        self._readers = ThreadPoolExecutor(8, thread_name_prefix="read")
        self._fetchers = ThreadPoolExecutor(8, thread_name_prefix="fetch")
        self._under_way = 0
        self._ending = False
        self._answered = float("-inf")
        self._pinging: asyncio.Task[None] | None = None

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route(TASKS, self.list_tasks),
            Route(TASKS + "/{name}", self.describe_task),
            Route(TASKS + "/{name}/predict", self.predict, methods=["POST"]),
        ]
        handlers: Any = {Refused: _on_refused, HTTPException: _on_http, Exception: _on_fault}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def end(self) -> None:
        """Refuses new requests, and waits for those under way, at most as long as one may take."""
        self._ending = True
        until = time.monotonic() + self._request.limits.seconds
        while self._under_way and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await asyncio.sleep(_LAST_SECONDS)

    async def health(self, _: Request) -> Response:
        """200 where a replica answers, 503 where none does; needs no token."""
        if time.monotonic() - self._answered > _RECENT_SECONDS:
            if self._pinging is None or self._pinging.done():  # one for all who ask
                self._pinging = asyncio.ensure_future(self._ping())
            try:
                await asyncio.wait_for(asyncio.shield(self._pinging), _HEALTH_SECONDS)
            except Exception:
                return _refusal(503, ("No model answers.",))
        return _json({"status": "ending" if self._ending else "ok"})

    async def _ping(self) -> None:
        try:
            await self._model.ping.remote()
        except BackPressureError:  # busy, not gone
            return
        self._answered = time.monotonic()

    async def metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        self._check_client(request)
        return Response(self._counts.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def list_tasks(self, request: Request) -> Response:
        """All tasks, and what their folders say of them."""
        self._check_client(request)
        return _json({"tasks": await asyncio.to_thread(self._describe_all)})

    def _describe_all(self) -> list[dict[str, Any]]:
        found = [place for name in self._catalogue.names() if (place := self._catalogue.find(name))]
        return [_describe(place, labels=False) for place in found]

    async def describe_task(self, request: Request) -> Response:
        """One task, with its class names."""
        self._check_client(request)
        name = request.path_params["name"]
        place = await find_soon(self._catalogue, name)
        if place is None:
            raise await self._unknown(name)
        return _json(await asyncio.to_thread(_describe, place, labels=True))

    async def predict(self, request: Request) -> Response:
        """The most probable classes of the images of the body; ``?top=N`` of them, 5 if left out."""
        start, known, name = time.perf_counter(), "", request.path_params["name"]
        try:
            self._check_client(request)
            if await find_soon(self._catalogue, name) is None:
                raise await self._unknown(name)
            known = name
            self._check_load()
            self._under_way += 1
            try:
                async with asyncio.timeout(self._request.limits.seconds):
                    titles, reply = await self._answer(request, name)
            except TimeoutError:
                raise Refused(504, f"No answer within {self._request.limits.seconds:g} seconds.") from None
            finally:
                self._under_way -= 1
            if reply.kind == "unknown" and await find_soon(self._catalogue, name) is None:  # it went away meanwhile
                raise await self._unknown(name)
            if reply.kind != "ok":
                unseen = (f"A replica does not see the adapter of task {name}; its folder must be on all nodes.",)
                raise Refused(_STATUS[reply.kind], *(reply.sentences or unseen))
        except Refused as error:
            self._counts.refused(known, error.status)
            raise
        except ClientDisconnect:
            self._counts.refused(known, 499)
            return Response(status_code=499)
        except Exception:
            self._counts.refused(known, 500)
            raise
        self._counts.answered(name, time.perf_counter() - start, reply.batches)
        predictions = [
            {
                "image": title,
                "label": row[0][0],
                "probability": row[0][1],
                "top": [{"label": label, "probability": probability} for label, probability in row],
            }
            for title, row in zip(titles, reply.rows, strict=True)
        ]
        return _json({"task": name, "predictions": predictions})

    async def _answer(self, request: Request, name: str) -> tuple[list[str], Reply]:
        limits = self._request.limits
        top = _read_top(request)
        body = await read_body(request.stream(), request.headers, limits.body_bytes)
        sources = find_sources(request.headers.get("content-type", ""), body, limits.images)
        images = await self._fetch(sources)
        titles = [source.title for source in sources]
        reply = await self._ask(lambda: self._model.predict.remote(name, images, titles, top))
        self._answered = time.monotonic()
        self._counts.replica(reply.replica, reply.loaded, reply.bytes)
        return titles, reply

    async def _fetch(self, sources: list[Source]) -> list[bytes]:
        loop, most = asyncio.get_running_loop(), self._request.limits.body_bytes
        wrong: list[Refused] = []
        images: list[bytes] = []
        for source in sources:
            pool = self._readers if source.path is not None else self._fetchers  # a slow host holds up no file
            try:
                data = source.data
                images.append(await loop.run_in_executor(pool, fetch, source, self._request) if data is None else data)
            except Refused as error:
                wrong.append(error)
            if sum(map(len, images)) > most:
                raise Refused(413, f"The images have more than {most:,} bytes together; send fewer at once.")
        if wrong:
            raise Refused(min(each.status for each in wrong), *(text for each in wrong for text in each.sentences))
        return images

    async def _ask(self, call: Callable[[], Pending]) -> Reply:
        """A replica's reply. A prediction changes nothing, so that another replica is asked where one has died."""
        died = 0
        while True:
            pending = call()
            try:
                return await pending
            except asyncio.CancelledError:  # given up, or the client is gone
                pending.cancel()
                raise
            except BackPressureError as error:
                if not died:
                    sentence = f"{self._request.limits.waiting} requests wait already; try again in a moment."
                    raise Refused(503, sentence) from error
                await asyncio.sleep(0.1)  # it had its place before
            except DeploymentUnavailableError as error:
                raise Refused(503, "No model can be started; the service's log says why.") from error
            except RayTaskError:  # a fault of ours
                raise
            except RayError as error:
                died += 1
                if died == _TRIES:
                    raise Refused(503, f"{_TRIES} models died, one after the other; try again in a moment.") from error
                self._counts.retried()

    def _check_load(self) -> None:
        if self._ending:
            raise Refused(503, "The service is ending.")
        if self._under_way >= self._request.most_requests:
            raise Refused(503, f"{self._under_way} requests are under way already; try again in a moment.")

    def _check_client(self, request: Request) -> None:
        token = self._request.token
        if token is None:
            # A page of the web may call its own host 127.0.0.1: it gets no further than here.
            if is_loopback(self._request.host) and not is_loopback(_host_of(request)):
                raise Refused(403, "Only requests to this machine's own address are answered (header Host).")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not right:
            raise Refused(401, 'Show the service\'s token: the header "Authorization: Bearer TOKEN".')

    async def _unknown(self, name: str) -> Refused:
        names = await asyncio.to_thread(self._catalogue.names)
        near = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.5) if len(names) <= _MOST_NAMES else []
        hint = f"did you mean {' or '.join(near)}?" if near else f"GET {TASKS} lists the {len(names)} that there are."
        return Refused(404, f"There is no task {name[:100]!r}; {hint}")


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # In ASCII: whatever text comes from a folder or a client can be sent.
    return Response(json.dumps(content, separators=(",", ":")), status, headers, "application/json")


def _refusal(status: int, sentences: tuple[str, ...]) -> Response:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return _json({"error": " ".join(sentences), "errors": list(sentences)}, status, headers)


async def _on_refused(_: Request, error: Refused) -> Response:
    return _refusal(error.status, error.sentences)


async def _on_http(request: Request, error: HTTPException) -> Response:
    reason = {
        404: f"There is nothing at {request.url.path[:200]}; there are {TASKS}, {TASKS}/NAME, {TASKS}/NAME/predict, "
        "/health and /metrics.",
        405: f"{request.method} is not answered at {request.url.path[:200]}; predict is POST, all others are GET.",
    }
    response = _refusal(error.status_code, (reason.get(error.status_code, str(error.detail)),))
    response.headers.update(error.headers or {})
    return response


async def _on_fault(_: Request, error: Exception) -> Response:
    cause = getattr(error, "cause", None) or error
    _LOG.error("A request failed", exc_info=error)
    # A client is not told how the service is made.
    return _refusal(500, (f"The service failed ({type(cause).__name__}); its log says more.",))


def _host_of(request: Request) -> str:
    """The name by which a client calls this machine; loopback where it names none."""
    try:
        return urllib.parse.urlsplit("//" + request.headers.get("host", "localhost")).hostname or ""
    except ValueError:
        return ""


def _read_top(request: Request) -> int:
    if unknown := sorted(set(request.query_params) - {"top"}):
        raise Refused(400, f"The address has the parameter {unknown[0][:100]!r}; only top is known.")
    text = request.query_params.get("top", "5")
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= _MOST_CLASSES):
        raise Refused(400, f"top={text[:100]} must be a whole number of at least 1, and {_MOST_CLASSES} at most.")
    return int(text)


def _describe(place: Place, labels: bool) -> dict[str, Any]:
    """What is known of a task, as far as it has the right form."""
    try:
        facts = read_facts(place)
    except InputError as error:
        return {"name": place.name, "error": str(error)}
    image = facts.get("image")
    size = image.get("size") if isinstance(image, dict) else None
    found = {
        "name": place.name,
        "method": facts.get("method") if isinstance(facts.get("method"), str) else None,
        "classes": facts.get("num_classes") if isinstance(facts.get("num_classes"), int) else None,
        "image_size": size if isinstance(size, int) or _is_list_of(size, int) else None,
    }
    if labels:
        found["labels"] = facts.get("labels") if _is_list_of(facts.get("labels"), str) else None
    return found


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)

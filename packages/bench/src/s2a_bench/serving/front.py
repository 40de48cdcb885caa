"""The HTTP address: who may ask, what a request may hold, and which answer it gets."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from s2a_bench.errors import InputError
from s2a_bench.serving.body import Refused, Source, fetch, find_sources, read_body
from s2a_bench.serving.catalogue import Place, read_facts
from s2a_bench.serving.counts import Counts
from s2a_bench.serving.reply import Reply
from s2a_bench.serving.request import ServeRequest

TASKS = "/v1/tasks"
_STATUS = {"unknown": 404, "bad": 422, "unavailable": 503}
_TRIES = 3
"""Replicas that a request is given to, one after the other, if they die."""
_HEALTH_SECONDS = 5.0
_MOST_CLASSES = 100_000


def _refusal(status: int, sentences: tuple[str, ...]) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return JSONResponse({"error": " ".join(sentences), "errors": list(sentences)}, status, headers)


async def _on_refused(_: Request, error: Refused) -> JSONResponse:
    return _refusal(error.status, error.sentences)


async def _on_http(request: Request, error: HTTPException) -> JSONResponse:
    reason = {
        404: f"There is nothing at {request.url.path}; there are {TASKS}, {TASKS}/NAME, {TASKS}/NAME/predict, /health "
        "and /metrics.",
        405: f"{request.method} is not answered at {request.url.path}; predict is POST, all others are GET.",
    }
    response = _refusal(error.status_code, (reason.get(error.status_code, str(error.detail)),))
    response.headers.update(error.headers or {})
    return response


async def _on_fault(_: Request, error: Exception) -> JSONResponse:
    # The cause is in the service's log; a client is not told how it is made.
    return _refusal(500, (f"The service failed ({type(error).__name__}); its log says more.",))


class Front:
    """What is behind the address.

    Args:
        model: The replicas: a handle of the deployment ``Model``.
        request: The service.
    """

    def __init__(self, model: DeploymentHandle[Any], request: ServeRequest) -> None:
        self._model = model
        self._request = request
        self._catalogue = request.catalogue
        self._counts = Counts()

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

    async def health(self, _: Request) -> Response:
        """200 where a replica answers, 503 where none does; needs no token."""
        try:
            await asyncio.wait_for(self._model.ping.remote(), _HEALTH_SECONDS)
        except Exception:
            return _refusal(503, ("No model answers.",))
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        self._check_token(request)
        return Response(self._counts.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def list_tasks(self, request: Request) -> Response:
        """All tasks, and what their folders say of them."""
        self._check_token(request)
        found = [place for name in self._catalogue.names() if (place := self._catalogue.find(name))]
        return JSONResponse({"tasks": [_describe(place, labels=False) for place in found]})

    async def describe_task(self, request: Request) -> Response:
        """One task, with its class names."""
        self._check_token(request)
        name = request.path_params["name"]
        place = self._catalogue.find(name)
        if place is None:
            raise self._unknown(name)
        return JSONResponse(_describe(place, labels=True))

    async def predict(self, request: Request) -> Response:
        """The most probable classes of the images of the body; ``?top=N`` of them, 5 if left out."""
        start, known, name = time.perf_counter(), "", request.path_params["name"]
        try:
            self._check_token(request)
            place = self._catalogue.find(name)
            if place is None:
                raise self._unknown(name)
            known = name
            try:
                async with asyncio.timeout(self._request.limits.seconds):
                    titles, reply = await self._answer(request, name)
            except TimeoutError:
                raise Refused(504, f"No answer within {self._request.limits.seconds:g} seconds.") from None
            if reply.kind == "unknown":  # it went away meanwhile
                raise self._unknown(name)
            if reply.kind != "ok":
                raise Refused(_STATUS[reply.kind], *reply.sentences)
        except Refused as error:
            self._counts.refused(known, error.status)
            raise
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
        return JSONResponse({"task": name, "predictions": predictions})

    async def _answer(self, request: Request, name: str) -> tuple[list[str], Reply]:
        limits = self._request.limits
        top = _read_top(request)
        body = await read_body(request.stream(), request.headers, limits.body_bytes)
        sources = find_sources(request.headers.get("content-type", ""), body, limits.images)
        images = await self._fetch(sources)
        titles = [source.title for source in sources]
        reply = await self._ask(lambda: self._model.predict.remote(name, images, titles, top))
        self._counts.replica(reply.replica, reply.loaded, reply.bytes)
        return titles, reply

    async def _fetch(self, sources: list[Source]) -> list[bytes]:
        wrong: list[Refused] = []
        images: list[bytes] = []
        for source in sources:
            try:
                if source.data is not None:
                    images.append(source.data)
                else:
                    images.append(await asyncio.to_thread(fetch, source, self._request))
            except Refused as error:
                wrong.append(error)
        if wrong:
            raise Refused(min(each.status for each in wrong), *(text for each in wrong for text in each.sentences))
        return images

    async def _ask(self, call: Callable[[], Awaitable[Reply]]) -> Reply:
        """A replica's reply. A prediction changes nothing, so that another replica is asked where one has died."""
        for left in reversed(range(_TRIES)):
            try:
                return await call()
            except BackPressureError as error:
                sentence = f"{self._request.limits.waiting} requests wait already; try again in a moment."
                raise Refused(503, sentence) from error
            except RayActorError as error:
                if not left:
                    raise Refused(503, f"{_TRIES} models died, one after the other; try again in a moment.") from error
                self._counts.retried()
        raise AssertionError

    def _check_token(self, request: Request) -> None:
        token = self._request.token
        if token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not right:
            raise Refused(401, 'Show the service\'s token: the header "Authorization: Bearer TOKEN".')

    def _unknown(self, name: str) -> Refused:
        names = self._catalogue.names()
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"GET {TASKS} lists the {len(names)} that there are."
        return Refused(404, f"There is no task {name[:100]!r}; {hint}")


def _read_top(request: Request) -> int:
    if unknown := sorted(set(request.query_params) - {"top"}):
        raise Refused(400, f"The address has the parameter {unknown[0][:100]!r}; only top is known.")
    text = request.query_params.get("top", "5")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:10]) <= _MOST_CLASSES):
        raise Refused(400, f"top={text[:100]} must be a whole number of at least 1, and {_MOST_CLASSES} at most.")
    return int(text)


def _describe(place: Place, labels: bool) -> dict[str, Any]:
    try:
        facts = read_facts(place)
    except InputError as error:
        return {"name": place.name, "error": str(error)}
    found: dict[str, Any] = {"name": place.name, "method": facts.get("method"), "classes": facts.get("num_classes")}
    with contextlib.suppress(TypeError, AttributeError):
        found["image_size"] = facts["image"]["size"] if facts.get("image") else None
    if labels:
        found["labels"] = facts.get("labels")
    return found

"""A replica: takes requests, collects their images for a pass, and keeps the tasks that they ask for.

What needs torch is in ``passes``, which a replica's own process imports.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from s2a_bench.serving.catalogue import Place, find_soon
from s2a_bench.serving.collect import Collector
from s2a_bench.serving.loopback import keep_on_loopback
from s2a_bench.serving.reply import Lost, Reply
from s2a_bench.serving.request import ServeRequest

if TYPE_CHECKING:
    from s2a_bench.serving.cache import Loaded
    from s2a_bench.serving.passes import Item

_DECODERS = 4
_LOADERS = 4
_TRIES = 5
"""How often a request looks for its task while the folder is being replaced."""
_MOMENT = 1.0
"""Seconds that a loaded task is held for those who waited for it; they hold it on their own by then."""


class Model:
    """The deployment that runs the models.

    Args:
        request: The service.

    Raises:
        S2AError: The backbone cannot be had.
    """

    def __init__(self, request: ServeRequest) -> None:
        from s2a_bench.serving import cache, passes

        keep_on_loopback()
        self._catalogue = request.catalogue
        self._passes = passes.Passes(request)
        self._cache = self._passes.cache
        self._decode, self._item = passes.decode, passes.Item
        self._not_served = cache.NotServed
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="load")
        self._runner = ThreadPoolExecutor(1, thread_name_prefix="run")
        self._collector = Collector(
            self._passes.run, self._runner, request.batch_size, request.batch_seconds, self._release
        )
        self._loads: dict[str, asyncio.Future[Loaded]] = {}
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    async def predict(self, name: str, images: Sequence[bytes], titles: Sequence[str], top: int) -> Reply:
        """The most probable classes of images.

        Args:
            name: Of the task.
            images: Contents of image files.
            titles: What each is called in an error.
            top: Classes per image; all where there are fewer.
        """
        place = await find_soon(self._catalogue, name)
        if place is None:
            self._cache.keep_only(set(await asyncio.to_thread(self._catalogue.names)))
            return self._reply("unknown")
        try:
            task = await self._hold(place)
        except self._not_served as error:
            return self._reply("unavailable", sentences=(str(error),))
        try:
            return await self._predict(task, images, titles, top)
        finally:
            self._cache.release(task)

    async def ping(self) -> None:
        """Answers as long as the replica does."""

    async def _hold(self, place: Place) -> Loaded:
        """The task in the state that its folder has when a request asks for it, or a later one.

        Raises:
            NotServed: It cannot be loaded.
        """
        for _ in range(_TRIES):
            if held := self._cache.hold(place):
                return held
            entry = await asyncio.shield(self._loads.get(place.name) or self._begin_load(place))
            self._cache.hold_also(entry)
            # What was loaded may be of before this request, or of after it: then it must be what is there now.
            now = place if entry.place == place else await asyncio.to_thread(self._catalogue.find, place.name)
            if now == entry.place:
                return entry
            self._cache.release(entry)
            place = now or place
        raise self._not_served(f"Task {place.name} cannot be loaded: its files are being changed.")

    def _begin_load(self, place: Place) -> asyncio.Future[Loaded]:
        """Loads a task once for all who wait for it; goes on when they are gone."""
        loop = asyncio.get_running_loop()
        loading = loop.run_in_executor(self._loaders, self._load, place)
        self._loads[place.name] = loading

        def loaded(_: asyncio.Future[Loaded]) -> None:
            del self._loads[place.name]
            if not loading.cancelled() and loading.exception() is None:
                loop.call_later(_MOMENT, self._cache.release, loading.result())

        loading.add_done_callback(loaded)
        return loading

    def _load(self, place: Place) -> Loaded:
        entry = self._cache.load(place)
        self._cache.keep_only(set(self._catalogue.names()))
        return entry

    def _release(self, item: Item) -> None:
        self._cache.release(item.task)

    async def _predict(self, held: Loaded, images: Sequence[bytes], titles: Sequence[str], top: int) -> Reply:
        transform = held.task.transform
        if transform is None:
            sentence = f"Task {held.place.name} has no image format in its folder; save it with image=."
            return self._reply("unavailable", sentences=(sentence,))
        loop, named = asyncio.get_running_loop(), zip(images, titles, strict=True)
        decoding = [loop.run_in_executor(self._decoders, self._decode, *each, transform) for each in named]
        inputs = await asyncio.gather(*decoding)
        if bad := tuple(each for each in inputs if isinstance(each, str)):
            return self._reply("bad", sentences=bad)
        waiting = []
        for image in inputs:
            if not isinstance(image, str):
                self._cache.hold_also(held)  # its pass may end after the request
                waiting.append(self._collector.put(self._item(held, image, top)))
        found = await asyncio.gather(*waiting)
        if lost := [each for each in found if isinstance(each, Lost)]:
            return self._reply(lost[0].kind, sentences=tuple(dict.fromkeys(each.sentence for each in lost)))
        good = [each for each in found if not isinstance(each, Lost)]
        return self._reply("ok", rows=[each.row for each in good], batches=tuple(each.size for each in good))

    def _reply(self, kind: Any, **values: Any) -> Reply:
        return Reply(kind, **values, replica=self._name, loaded=len(self._cache), bytes=self._cache.bytes)

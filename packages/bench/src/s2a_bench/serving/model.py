"""A replica: takes requests, collects their images for a pass, and keeps the tasks that they ask for.

What needs torch is in ``passes``, which a replica's own process imports.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ray import serve

from s2a_bench.serving.loopback import keep_on_loopback
from s2a_bench.serving.reply import Reply
from s2a_bench.serving.request import ServeRequest

if TYPE_CHECKING:
    from s2a_bench.serving.cache import Loaded

_DECODERS = 4


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
        self._decode, self._rank, self._item = passes.decode, passes.rank, passes.Item
        self._not_served = cache.NotServed
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._runner = ThreadPoolExecutor(1, thread_name_prefix="run")
        batch: Any = self._pass
        batch.set_max_batch_size(request.batch_size)
        batch.set_batch_wait_timeout_s(request.batch_seconds)

    async def predict(self, name: str, images: Sequence[bytes], titles: Sequence[str], top: int) -> Reply:
        """The most probable classes of images.

        Args:
            name: Of the task.
            images: Contents of image files.
            titles: What each is called in an error.
            top: Classes per image; all where there are fewer.
        """
        place = self._catalogue.find(name)
        if place is None:
            self._cache.keep_only(set(self._catalogue.names()))
            return self._reply("unknown")
        try:
            task = self._cache.hold(place) or await _in(self._loader, self._cache.load, place)
        except self._not_served as error:
            return self._reply("unavailable", sentences=(str(error),))
        try:
            return await self._predict(task, images, titles, top)
        finally:
            self._cache.release(task)

    async def ping(self) -> None:
        """Answers as long as the replica does."""

    async def _predict(self, held: Loaded, images: Sequence[bytes], titles: Sequence[str], top: int) -> Reply:
        task = held.task
        if task.transform is None:
            sentence = f"Task {held.place.name} has no image format in its folder; save it with image=."
            return self._reply("unavailable", sentences=(sentence,))
        named = zip(images, titles, strict=True)
        inputs = await asyncio.gather(*(_in(self._decoders, self._decode, *each, task.transform) for each in named))
        if bad := tuple(each for each in inputs if isinstance(each, str)):
            return self._reply("bad", sentences=bad)
        found = await asyncio.gather(*(self._pass(self._item(held, image)) for image in inputs))
        if wrong := tuple(dict.fromkeys(each for each in found if isinstance(each, str))):
            return self._reply("unavailable", sentences=wrong)
        labels = task.labels or tuple(map(str, range(task.num_classes)))
        rows = [self._rank(probabilities, labels, top) for probabilities, _ in found]
        return self._reply("ok", rows=rows, batches=tuple(size for _, size in found))

    # Serve would cut a batch up by its own multiplexed ids; here all tasks are to share one.
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def _pass(self, items: list[Any]) -> list[Any]:
        return await _in(self._runner, self._passes.run, items)

    def _reply(self, kind: Any, **values: Any) -> Reply:
        return Reply(kind, **values, replica=str(os.getpid()), loaded=len(self._cache), bytes=self._cache.bytes)


async def _in(pool: ThreadPoolExecutor, function: Any, *values: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *values)

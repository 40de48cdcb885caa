"""Collects what many ask for at once into passes of one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(eq=False)
class _Waiting(Generic[T, R]):
    item: T
    result: asyncio.Future[R]


class Collector(Generic[T, R]):
    """Runs a function on what waits, as much as it takes at once, whenever its last run has ended.

    ``serve.batch`` closes a batch after its time limit even while the one before it runs, so that the slower a pass
    is, the fewer images share the next one (measured: 40 passes of one image each where five would have done).

    Args:
        run: Takes items, gives as many results. Runs on a thread of ``pool``, never twice at a time.
        pool: Of threads.
        size: Most items of a run.
        seconds: Time that a run waits for further items after an idle time.
        done: Told of every item when nothing will use it any more, in the event loop.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        pool: Executor,
        size: int,
        seconds: float,
        done: Callable[[T], None],
    ) -> None:
        self._run, self._pool, self._size, self._seconds, self._done = run, pool, size, seconds, done
        self._queue: asyncio.Queue[_Waiting[T, R]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    def put(self, item: T) -> asyncio.Future[R]:
        """Queues an item.

        Args:
            item: Whatever becomes of the future, ``done`` is told of it once.

        Returns:
            Its result, or what the function raised; cancelling it takes the item out of the queue.
        """
        loop = asyncio.get_running_loop()
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        waiting: _Waiting[T, R] = _Waiting(item, loop.create_future())
        self._queue.put_nowait(waiting)
        return waiting.result

    async def _work(self) -> None:
        loop, idle = asyncio.get_running_loop(), True
        while True:
            batch = [await self._queue.get()]
            until = loop.time() + (self._seconds if idle else 0.0)
            while len(batch) < self._size:
                try:
                    async with asyncio.timeout_at(until) if self._queue.empty() else contextlib.nullcontext():
                        batch.append(await self._queue.get())
                except TimeoutError:
                    break
            wanted = [each for each in batch if not each.result.done()]
            try:
                if wanted:
                    results = await loop.run_in_executor(self._pool, self._run, [each.item for each in wanted])
                    for each, result in zip(wanted, results, strict=True):
                        if not each.result.done():
                            each.result.set_result(result)
            except Exception as error:
                for each in wanted:
                    if not each.result.done():
                        each.result.set_exception(error)
            except BaseException:  # the loop ends, or the pool is broken: nobody shall wait for ever
                for each in wanted:
                    each.result.cancel()
                raise
            finally:
                for each in batch:
                    self._done(each.item)
            idle = self._queue.empty()

"""Passes of what is asked for at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench.serving.collect import Collector


def collect(run: Callable[[Sequence[Any]], Sequence[Any]], use: Any, size: int = 8, seconds: float = 0.0) -> list[Any]:
    """What ``done`` was told after ``await use(collector)``."""
    done: list[Any] = []

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            collector: Collector[Any, Any] = Collector(run, pool, size, seconds, done.append)
            await use(collector)

    asyncio.run(main())
    return done


def test_what_comes_while_a_pass_runs_shares_the_next_one():
    passes: list[list[int]] = []

    def run(items: Sequence[int]) -> list[int]:
        passes.append(list(items))
        time.sleep(0.2)
        return [-item for item in items]

    async def use(collector: Any) -> None:
        waiting = []
        for item in range(13):
            waiting.append(collector.put(item))
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*waiting) == [-item for item in range(13)]

    assert sorted(collect(run, use)) == list(range(13))
    assert passes[0] == [0] and max(map(len, passes)) == 8 and len(passes) <= 4


def test_after_an_idle_time_a_pass_waits_a_moment_for_others():
    passes: list[list[int]] = []

    async def use(collector: Any) -> None:
        async def later(item: int) -> None:
            await asyncio.sleep(0.02 * item)
            await collector.put(item)

        await asyncio.gather(later(0), later(1))

    collect(lambda items: passes.append(list(items)) or items, use, seconds=0.3)
    assert passes == [[0, 1]]


def test_who_gives_up_is_left_out_and_the_others_have_their_own_results():
    passes: list[list[int]] = []

    async def use(collector: Any) -> None:
        waiting = [collector.put(item) for item in range(4)]
        waiting[1].cancel()
        assert await asyncio.gather(waiting[0], waiting[2], waiting[3]) == [0, 20, 30]

    done = collect(lambda items: passes.append(list(items)) or [10 * item for item in items], use)
    assert passes == [[0, 2, 3]] and sorted(done) == [0, 1, 2, 3]


def test_a_fault_is_told_to_all_of_its_pass_and_to_no_other():
    def run(items: Sequence[int]) -> Sequence[int]:
        if 1 in items:
            raise ZeroDivisionError
        return items

    async def use(collector: Any) -> None:
        first = await asyncio.gather(*(collector.put(item) for item in range(3)), return_exceptions=True)
        assert [type(each) for each in first] == [ZeroDivisionError] * 3
        assert await collector.put(5) == 5

    assert sorted(collect(run, use)) == [0, 1, 2, 5]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30), st.integers(1, 5))
def test_whatever_is_given_up_each_item_is_done_with_once(steps, size):
    async def use(collector: Any) -> None:
        waiting = []
        for item, (pause, give_up) in enumerate(steps):
            waiting.append(collector.put(item))
            if pause:
                await asyncio.sleep(0)
            if give_up:
                waiting[item // 2].cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        for item, each in enumerate(found):
            assert each == item or isinstance(each, asyncio.CancelledError)
        while not collector._queue.empty():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)

    assert sorted(collect(lambda items: items, use, size)) == list(range(len(steps)))

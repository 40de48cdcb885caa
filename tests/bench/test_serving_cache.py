"""Which tasks a replica keeps, and that nobody's task is taken away."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bench.fake_adapters import fake_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a import S2AError
from s2a_bench.serving.cache import NotServed, TaskCache
from s2a_bench.serving.catalogue import Catalogue, Place


@dataclasses.dataclass
class FakeTask:
    bytes: int


class FakeMulti:
    """Notes what is added and removed; a task's memory is the number after its hub id's last ``-``."""

    def __init__(self) -> None:
        self.tasks: dict[str, str] = {}
        self.added: list[str] = []
        self.configs: list[bytes] = []
        self.before_add: Any = None

    def add(self, name: str, adapter: str) -> FakeTask:
        if self.before_add is not None:
            self.before_add(adapter)
        assert name not in self.tasks
        self.tasks[name] = adapter
        self.added.append(adapter)
        if (config := Path(adapter, "adapter_config.json")).is_file():
            self.configs.append(config.read_bytes())
            return FakeTask(1)
        return FakeTask(int(adapter.rpartition("-")[2]))

    def remove(self, name: str) -> None:
        del self.tasks[name]


def hub(name: str, size: int) -> Place:
    return Place(name, f"owner/{name}-{size}", None)


def make(limit: int) -> tuple[TaskCache, FakeMulti]:
    multi = FakeMulti()
    return TaskCache(multi, limit), multi  # type: ignore[arg-type]


def use(cache: TaskCache, place: Place) -> None:
    cache.release(cache.hold(place) or cache.load(place))


def names(multi: FakeMulti) -> set[str]:
    return {key.partition(" ")[0] for key in multi.tasks}


def test_a_task_is_loaded_once_and_held_as_often_as_it_is_asked_for():
    cache, multi = make(100)
    first, second = cache.load(hub("a", 10)), cache.load(hub("a", 10))
    assert first is second and cache.hold(hub("a", 10)) is first
    assert (first.users, len(multi.added), cache.bytes) == (3, 1, 10)


def test_the_least_recently_used_goes_first():
    cache, multi = make(25)
    for name in "abac":
        use(cache, hub(name, 10))
    assert names(multi) == {"a", "c"} and cache.bytes == 20


def test_what_is_held_stays_above_the_limit_and_goes_when_it_is_released():
    cache, multi = make(15)
    held = [cache.load(hub(name, 10)) for name in "abc"]
    assert names(multi) == set("abc") and cache.bytes == 30
    for entry in held:
        cache.release(entry)
    assert names(multi) == {"c"}


def test_a_task_larger_than_the_limit_is_served_all_the_same():
    cache, multi = make(5)
    use(cache, hub("a", 10))
    assert names(multi) == {"a"}


def test_a_replaced_adapter_is_loaded_anew_and_the_former_stays_for_those_who_hold_it(tmp_path):
    cache, multi = make(100)
    fake_adapter(tmp_path / "birds")
    catalogue = Catalogue([("birds", str(tmp_path / "birds"))], None)
    before = catalogue.find("birds")
    assert before is not None
    former = cache.load(before)
    (tmp_path / "birds").rename(tmp_path / "gone")
    fake_adapter(tmp_path / "birds", method="bias")
    after = catalogue.find("birds")
    assert after is not None and cache.hold(after) is None
    now = cache.load(after)
    assert set(multi.tasks) == {former.key, now.key} and former.key != now.key
    cache.release(former)
    assert set(multi.tasks) == {now.key}


@pytest.fixture
def on_copy(monkeypatch):
    """``on_copy.append(function)``: called before each file that is copied."""
    called: list[Any] = []
    usual = shutil.copyfile

    def copy(source: Path, target: Path) -> None:
        for each in called:
            each()
        usual(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy)
    return called


def test_an_adapter_whose_files_change_while_it_is_loaded_is_loaded_as_it_is_then(tmp_path, on_copy):
    cache, multi = make(100)
    folder = Path(fake_adapter(tmp_path / "birds"))
    catalogue = Catalogue([("birds", str(folder))], None)
    place = catalogue.find("birds")
    assert place is not None
    changes = iter([lambda: fake_adapter(folder, method="a longer name than before")])
    on_copy.append(lambda: next(changes, lambda: None)())
    entry = cache.load(place)
    assert len(multi.added) == 1 and set(multi.tasks) == {entry.key}
    assert entry.place == catalogue.find("birds") != place
    assert multi.configs == [(folder / "adapter_config.json").read_bytes()]


def test_an_adapter_that_never_stops_changing_is_refused_and_nothing_of_it_stays(tmp_path, on_copy):
    cache, multi = make(100)
    folder = Path(fake_adapter(tmp_path / "birds"))
    place = Catalogue([("birds", str(folder))], None).find("birds")
    assert place is not None
    numbers = itertools.count()
    on_copy.append(lambda: fake_adapter(folder, method="x" * next(numbers)))
    with pytest.raises(NotServed, match="birds cannot be loaded: its files are being changed"):
        cache.load(place)
    assert not multi.tasks and len(cache) == 0


def test_an_adapter_that_goes_away_meanwhile_is_said(tmp_path, on_copy):
    cache, _ = make(100)
    folder = Path(fake_adapter(tmp_path / "birds"))
    place = Catalogue([("birds", str(folder))], None).find("birds")
    assert place is not None
    on_copy.append(lambda: shutil.rmtree(folder, ignore_errors=True))
    with pytest.raises(NotServed, match=r"birds cannot be loaded: No such file or directory\."):
        cache.load(place)


def test_what_cannot_be_loaded_is_said_and_tried_again_later(monkeypatch):
    cache, multi = make(100)
    tries = 0

    def fail(_: str) -> None:
        nonlocal tries
        tries += 1
        multi.before_add = None
        raise S2AError("it is damaged.")

    multi.before_add = fail
    for _ in range(2):
        with pytest.raises(NotServed, match=r"Task a cannot be loaded: it is damaged\."):
            cache.load(hub("a", 1))
    assert tries == 1  # not again at once
    use(cache, hub("b", 1))
    monkeypatch.setattr("s2a_bench.serving.cache._FAILED_SECONDS", 0.0)
    use(cache, hub("a", 1))


def test_tasks_that_are_there_no_more_are_let_go_of():
    cache, multi = make(100)
    for name in "abc":
        use(cache, hub(name, 1))
    held = cache.load(hub("a", 1))
    cache.keep_only({"b"})
    assert names(multi) == {"a", "b"} and cache.hold(hub("a", 1)) is None
    cache.release(held)
    assert names(multi) == {"b"}


def test_many_who_ask_at_once_wait_for_one_load():
    cache, multi = make(100)
    started = threading.Event()
    multi.before_add = lambda _: started.wait(5)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(cache.load, hub("a", 10)) for _ in range(8)]
        started.set()
        entries = {id(each.result()) for each in waiting}
    assert len(entries) == 1 and len(multi.added) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.sampled_from("hold load release".split()), st.sampled_from("abcde"), st.integers(0, 4))),
)
def test_whatever_happens_held_tasks_are_there_and_memory_is_what_it_says(limit, steps):
    cache, multi = make(limit)
    held: list[Any] = []
    for what, name, number in steps:
        place = hub(name, 10 + ord(name) - ord("a"))
        if what == "release":
            if held:
                cache.release(held.pop(number % len(held)))
        elif entry := (cache.load(place) if what == "load" else cache.hold(place)):
            held.append(entry)
        assert {entry.key for entry in held} <= set(multi.tasks)
        assert cache.bytes == sum(int(adapter.rpartition("-")[2]) for adapter in multi.tasks.values())
        # Above the limit there is nothing but what is held, and the latest.
        assert cache.bytes <= limit or len(multi.tasks) <= len({entry.key for entry in held}) + 1
    while held:
        cache.release(held.pop())
    assert cache.bytes <= limit or len(multi.tasks) == 1

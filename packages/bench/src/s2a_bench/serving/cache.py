"""The loaded tasks of one replica: loaded when they are asked for, let go by memory."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading

from s2a import MultiTask, S2AError, Task

from s2a_bench.serving.catalogue import Place, stamp_of

_TRIES = 3
"""Loads of an adapter whose files change meanwhile."""


class NotServed(Exception):
    """A task that is there but cannot be loaded; the message says why."""


@dataclasses.dataclass(eq=False)
class Loaded:
    """A loaded state of a task.

    Attributes:
        place: What was loaded.
        key: Its name in ``MultiTask``, which no other state of the task has.
        task: The task.
        users: Requests that hold it.
    """

    place: Place
    key: str
    task: Task
    users: int = 0


class TaskCache:
    """Adapters in a ``MultiTask``, of which the least recently used are removed above a limit.

    A request holds what it began with: another state of its adapter's folder is another entry, and an entry that is
    held is not removed, so that the limit is exceeded rather than a request failed. All methods may be called by
    any thread.

    Args:
        multi: Holds the tasks; nobody else adds or removes any.
        limit: Bytes of all loaded tasks, ``Task.bytes`` added up.
    """

    def __init__(self, multi: MultiTask, limit: int) -> None:
        self._multi = multi
        self._limit = limit
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
        self._entries: collections.OrderedDict[str, Loaded] = collections.OrderedDict()  # by task, oldest use first
        self._former: set[Loaded] = set()  # replaced or let go, and still held

    @property
    def bytes(self) -> int:
        """Of all tasks that are loaded, those included that are only held still."""
        with self._lock:
            return self._bytes()

    def __len__(self) -> int:
        """Number of loaded tasks."""
        return len(self._entries)

    def hold(self, place: Place) -> Loaded | None:
        """Holds a task that is loaded, in this state of its files; ``None``: it is not."""
        with self._lock:
            found = self._entries.get(place.name)
            if found is None or found.place != place:
                return None
            found.users += 1
            self._entries.move_to_end(place.name)
            return found

    def load(self, place: Place) -> Loaded:
        """The same; loads it where it is not there, once for all who wait for it.

        Raises:
            NotServed: It cannot be loaded.
        """
        with self._lock:
            loading = self._loading[place.name]
        with loading:
            if found := self.hold(place):
                return found
            entry = self._make(place)
            with self._lock:
                if former := self._entries.pop(place.name, None):
                    self._let_go(former)
                self._entries[place.name] = entry
                entry.users += 1
                self._shrink()
        return entry

    def release(self, entry: Loaded) -> None:
        """Ends what ``hold`` or ``load`` began."""
        with self._lock:
            entry.users -= 1
            if entry.users == 0 and entry in self._former:
                self._former.remove(entry)
                self._multi.remove(entry.key)
            self._shrink()

    def keep_only(self, names: set[str]) -> None:
        """Lets go of the tasks that are there no more."""
        with self._lock:
            for name in [name for name in self._entries if name not in names]:
                self._let_go(self._entries.pop(name))

    def _make(self, place: Place) -> Loaded:
        key = f"{place.name} {next(self._numbers)}"
        for _ in range(_TRIES):
            try:
                task = self._multi.add(key, place.adapter)
            except S2AError as error:
                reason = str(error)
            except OSError as error:  # its files went away while they were read
                reason = error.strerror or str(error)
            else:
                if place.stamp is None or place.stamp == _stamp(place.adapter):
                    return Loaded(place, key, task)
                self._multi.remove(key)
                reason = "its files are being changed"
            now = None if place.stamp is None else _stamp(place.adapter)
            if now is None or now == place.stamp:
                raise NotServed(f"Task {place.name} cannot be loaded: {reason}")
            place = dataclasses.replace(place, stamp=now)
        raise NotServed(f"Task {place.name} cannot be loaded: {reason}")

    def _shrink(self) -> None:
        """Lets the least recently used go until the rest fits, but not the latest: something must be served."""
        for name in list(self._entries)[:-1]:
            if self._bytes() <= self._limit:
                return
            if self._entries[name].users == 0:
                self._let_go(self._entries.pop(name))

    def _let_go(self, entry: Loaded) -> None:
        if entry.users:
            self._former.add(entry)
        else:
            self._multi.remove(entry.key)

    def _bytes(self) -> int:
        return sum(entry.task.bytes for entry in (*self._entries.values(), *self._former))


def _stamp(adapter: str) -> object:
    try:
        return stamp_of(adapter)
    except OSError:
        return None

"""The loaded tasks of one replica: loaded when they are asked for, let go by memory."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from s2a import MultiTask, S2AError, Task

from s2a_bench.failures import out_of_memory
from s2a_bench.inference.checks import CONFIG
from s2a_bench.serving.catalogue import STATE, Place, stamp_of

_TRIES = 5
"""How often an adapter is loaded whose files change meanwhile."""
_TICK_SECONDS = 0.05
_FAILED_SECONDS = 5.0
"""Time in which a load that failed is not tried again."""


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
        self._failed: dict[str, tuple[Place, str, float]] = {}

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
            self._check_failed(place)
            try:
                entry = self._make(place)
            except NotServed as error:
                self._failed[place.name] = place, str(error), time.monotonic()
                raise
            with self._lock:
                if former := self._entries.pop(place.name, None):
                    self._let_go(former)
                self._entries[place.name] = entry
                entry.users += 1
                self._shrink()
        return entry

    def hold_also(self, entry: Loaded) -> None:
        """Holds once more what the caller holds."""
        with self._lock:
            entry.users += 1

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

    def _check_failed(self, place: Place) -> None:
        """What could not be loaded a moment ago is not tried again, as long as it is the same.

        Raises:
            NotServed: Its load has failed.
        """
        failed, sentence, when = self._failed.get(place.name, (None, "", 0.0))
        if failed == place and time.monotonic() - when < _FAILED_SECONDS:
            raise NotServed(sentence)

    def _make(self, place: Place) -> Loaded:
        reason = ""
        for _ in range(_TRIES):
            try:
                with _copied(place) as (copied, adapter):
                    if copied is not None:
                        return self._add(copied, adapter)
            except OSError as error:  # its files went away while they were read; perhaps others take their place
                reason = error.strerror or str(error)
                time.sleep(_TICK_SECONDS)
            else:
                reason = "its files are being changed"
        raise NotServed(f"Task {place.name} cannot be loaded: {reason}.")

    def _add(self, place: Place, adapter: str) -> Loaded:
        key = f"{place.name} {next(self._numbers)}"
        try:
            return Loaded(place, key, self._multi.add(key, adapter))
        except S2AError as error:
            reason = str(error).replace(adapter, place.adapter)
            raise NotServed(f"Task {place.name} cannot be loaded: {reason}") from error
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise NotServed(f"Task {place.name} cannot be loaded: memory ran out.") from error

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


@contextlib.contextmanager
def _copied(place: Place) -> Iterator[tuple[Place | None, str]]:
    """The place as its files are now, ``None`` if they changed meanwhile, and a folder with copies of them.

    Loading maps the file: one that is cut off and written anew meanwhile would end the process. A hub id is not copied.
    """
    if place.stamp is None:
        yield place, place.adapter
        return
    before = stamp_of(place.adapter)
    changed = max(max(each[1:3]) for each in before) / 1e9
    if 0 <= time.time() - changed < _TICK_SECONDS:  # a file system's clock may not tell the next change from this one
        time.sleep(_TICK_SECONDS)
    with tempfile.TemporaryDirectory(prefix="s2a-serve-", ignore_cleanup_errors=True) as folder:
        for name in (CONFIG, STATE):
            shutil.copyfile(Path(place.adapter, name), Path(folder, name))
        after = stamp_of(place.adapter)
        yield dataclasses.replace(place, stamp=after) if before == after else None, folder

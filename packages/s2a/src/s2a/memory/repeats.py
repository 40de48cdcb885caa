"""Functions that a model calls on like tensors block after block: a simulation runs each once.

What a call entered into the ledger is kept, numbered from its beginning, and entered again for the next call: storages,
when they came and went, the peak within, operations. The results are tensors of the same shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from s2a.memory import replay

if TYPE_CHECKING:
    from s2a.memory.ledger import Entry, Ledger


@dataclasses.dataclass
class Call:
    """What one call did, events and bytes counted from its beginning.

    Attributes:
        results: What it returned: tensors as ``replay`` describes them, ``None`` elsewhere.
        spec: How they were nested.
        entries: Storages that it made.
        twins: For each of these: which others go with it (``Entry.twins``).
        kept: Number among the results -> number of its storage among ``entries``, for new ones.
        events: Events within.
        live: Bytes that stay.
        peak: Most bytes held within, and the event at which that was.
        flops: Operations.
        in_module: Whether the entries name the module that was running.
    """

    results: list[Any]
    spec: TreeSpec
    entries: list[Entry]
    twins: list[list[int]]
    kept: dict[int, int]
    events: int
    live: int
    peak: tuple[int, int]
    flops: int
    in_module: bool


def key_of(ledger: Ledger, function: Any, args: tuple[Any, ...]) -> Any:
    """What decides everything that a call does; ``None`` if that is not known. The first argument is hashable."""
    device = ledger.device.type
    try:
        shapes = replay.key_of_values(args[1:])
    except replay.NotRemembered:
        return None
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    in_module = bool(ledger.modules)
    return function, args[0], shapes, ledger.phase, in_module, autocast


def run(ledger: Ledger, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Call | None]:
    """Runs a call; its results, and what is to be entered for the next like it, if that can be told."""
    start, now, live, flops = len(ledger.entries), ledger.now, ledger.live, ledger.flops
    before, ledger.peaks[ledger.phase] = ledger.peaks[ledger.phase], (live, now)
    there = dict(ledger.open)
    out = function(*args)
    inner = ledger.peaks[ledger.phase]
    ledger.peaks[ledger.phase] = max(before, inner, key=lambda peak: peak[0])
    # 1. What was there before is there still, as it was.
    if any(ledger.open.get(key, (None,))[0] is not entry for key, (entry, _) in there.items()):
        return out, None
    # 2. The results are new tensors, arguments or views of them.
    leaves, spec = tree_flatten(out)
    try:
        results = [None if leaf is None else replay.described(leaf, args) for leaf in leaves]
        replay.refuse_shared(leaves, results)
    except replay.NotRemembered:
        return out, None
    # 3. Nothing stays but what they lie on. All of it was made in the running module.
    entries = ledger.entries[start:]
    number = {id(entry): i for i, entry in enumerate(entries)}
    twins = [[number[id(twin)] for twin in entry.twins] for entry in entries]
    kept = {
        i: number[id(ledger.open[leaf.untyped_storage()._cdata][0])]
        for i, (leaf, result) in enumerate(zip(leaves, results, strict=True))
        if result is not None and result.of < 0 and leaf.untyped_storage().nbytes()
    }
    staying = set(kept.values())
    for i in list(staying):
        staying |= set(twins[i])
    place = ledger.modules[-1] if ledger.modules else None
    if staying != {i for i, entry in enumerate(entries) if entry.died is None}:
        return out, None
    if place is not None and any(entry.module != place for entry in entries):
        return out, None
    return out, Call(
        results,
        spec,
        [_moved(entry, -now, entry.module) for entry in entries],
        twins,
        kept,
        ledger.now - now,
        ledger.live - live,
        (inner[0] - live, inner[1] - now),
        ledger.flops - flops,
        place is not None,
    )


def again(ledger: Ledger, call: Call, args: tuple[Any, ...]) -> Any:
    """Enters a call like one that was run; its results."""
    now = ledger.now
    size, event = ledger.live + call.peak[0], now + call.peak[1]
    if size > ledger.peaks[ledger.phase][0]:
        ledger.peaks[ledger.phase] = size, event
    place = ledger.modules[-1] if call.in_module else None
    entries = [_moved(entry, now, entry.module if place is None else place) for entry in call.entries]
    for entry, twins in zip(entries, call.twins, strict=True):
        entry.twins = [entries[i] for i in twins]
    ledger.entries += entries
    ledger.now += call.events
    ledger.live += call.live
    ledger.flops += call.flops
    leaves: list[Any] = [None if result is None else replay.made(result, ledger.mode, args) for result in call.results]
    for i, number in call.kept.items():
        ledger.follow(leaves[i], entries[number])
    return tree_unflatten(leaves, call.spec)


def _moved(entry: Entry, events: int, module: str) -> Entry:
    died = None if entry.died is None else entry.died + events
    return dataclasses.replace(entry, born=entry.born + events, died=died, module=module, twins=[])

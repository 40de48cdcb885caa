"""What each ``data`` command does."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.types import Dataset
from s2a_bench.data.verify import Progress
from s2a_bench.errors import InputError, unknown

if TYPE_CHECKING:
    from s2a_bench.data.listing import DatasetStatus

DONE, SOME_FAILED = 0, 1
_VERBATIM: Any = {"markup": False, "highlight": False, "soft_wrap": True}
_LIVE, _HEARTBEAT = 0.1, 30.0
"""Seconds between two signs of life of one step, on a terminal and in a file."""
_SHOWN = 20
"""Problems printed before the rest is only counted; notes have a share of their own."""


def show(names: Sequence[str], root: Path | None, console: Console) -> int:
    """Prints every dataset and what of it is on disk; with names, all that is known of these.

    Raises:
        InputError: An unknown name.
    """
    from s2a_bench.data import listing

    rows = {row.name: row for row in listing.list_datasets(root)}
    if names:
        for dataset in _named(names):
            console.print(_card(dataset, rows[dataset.name]))
        return DONE
    if not console.is_terminal:
        console.width = max(console.width, 140)  # A file or a pipe gets whole lines.
    wide = console.width >= 110
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("dataset", "suite", "group")[: 3 if wide else 2]:
        table.add_column(title, no_wrap=True)
    for title in ("classes", "train/val/test"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    table.add_column("data id", no_wrap=True)
    for row in rows.values():
        sizes = "/".join("?" if n is None else f"{n}" for n in (row.counts.train, row.counts.val, row.counts.test))
        group = [row.group] if wide else []
        table.add_row(row.name, row.suite, *group, str(row.classes), sizes, _state(row), row.data_id or "")
    console.print(table)
    if root is None:
        console.print("Pass --data-dir DIR to see what is on disk.", **_VERBATIM)
    console.print("`s2a-bench data list NAME` tells all about one: lists, licence, where to get it.", **_VERBATIM)
    return DONE


def _state(row: DatasetStatus) -> str:
    state = "here" if row.present else "missing"
    if row.present and not row.prepared and row.split_id is None:
        state = "here, no manifest"
    return state + ", synthetic" * row.synthetic + ", lossy" * row.lossy


def _card(dataset: Dataset, row: DatasetStatus) -> Table:
    """All that is known of a dataset."""
    card = Table(box=None, show_header=False, pad_edge=False, title=dataset.name, title_justify="left")
    card.add_column(no_wrap=True, style="dim")
    card.add_column(overflow="fold")
    counted = ((name, dataset.count(name)) for name in dataset.lists)
    facts = {
        "suite": f"{dataset.suite}, {dataset.group}",
        "also called": ", ".join(dataset.aliases),
        "classes": str(dataset.classes),
        "images": ", ".join(f"{name} {'any number' if n is None else n}" for name, n in counted),
        "metric": dataset.metric,
        "published as": "" if dataset.embedded else "JPEG files" if dataset.encoding == "jpeg" else "lossless images",
        "source": dataset.source,
        "licence": dataset.licence,
        "get it": dataset.where,
        "prepare": " or ".join(["--from"] * (dataset.preparation is not None) + ["--download"] * bool(dataset.remotes)),
        "state": _state(row),
        "folder": row.where if row.present and not dataset.embedded else "",
        "on disk": row.size,
        "data id": row.data_id or "",
        "split id": row.split_id or "",
        "note": row.note,
    }
    for title, text in facts.items():
        if text:
            card.add_row(title, Text(text))
    return card


def prepare(names: Sequence[str], source: Path, root: Path, split: Path | None, console: Console) -> int:
    """Brings downloads into the standard folder.

    Args:
        names: Datasets or suites.
        source: A download, or a folder of downloads; a folder in it that has a dataset's name is looked into first.
        root: Data root.
        split: A published split.
        console: Where to say so.

    Returns:
        0, or 1 if some of several could not be prepared; the others are.

    Raises:
        InputError: See ``prepare.prepare``; for one dataset.
    """
    from s2a_bench.data import prepare as door

    def work(dataset: Dataset) -> str:
        own = source / dataset.name
        with _steps(console) as say:
            folder = door.prepare_dataset(dataset.name, own if own.is_dir() else source, root, say, split=split)
        return f"{dataset.name} is ready: {folder}"

    return _each(_named(names), work, console)


def download(names: Sequence[str], root: Path, split: Path | None, console: Console) -> int:
    """Gets the files of datasets and brings them into the standard folder.

    Returns:
        As ``prepare``.

    Raises:
        InputError: No address is known, a file cannot be had, or as ``prepare``.
    """
    from s2a_bench.data import download as fetcher
    from s2a_bench.data import prepare as door

    def work(dataset: Dataset) -> str:
        folder = root / ".downloads" / dataset.name
        if not dataset.remotes:
            raise InputError(
                f"{dataset.name} cannot be downloaded without its makers' leave; get it from {dataset.where} and pass "
                "it to --from."
            )
        with _steps(console) as say:
            fetcher.download_files(dataset.remotes, folder, say)
        with _steps(console) as say:
            return f"{dataset.name} is ready: {door.prepare_dataset(dataset.name, folder, root, say, split=split)}"

    return _each(_named(names), work, console)


def make(names: Sequence[str], root: Path, seed: int, full: bool, console: Console) -> int:
    """Makes up sources in their original formats and brings them into the standard folder.

    Returns:
        As ``prepare``.

    Raises:
        InputError: An embedded dataset, a seed below 0, or as ``prepare``.
    """
    from s2a_bench.data import prepare as door
    from s2a_bench.data.locks import reserve_path
    from s2a_bench.data.synthetic import plans

    if seed < 0:
        raise InputError(f"--seed {seed} is negative; give 0 or more.")

    def work(dataset: Dataset) -> str:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot write to {root} ({error}); nothing was prepared.") from error
        place = root / f".{dataset.name}.source"
        with reserve_path(place) as held:
            if not held:
                raise InputError(f"Another process is making up {dataset.name} in {root}; wait for it to end.")
            shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
            try:
                place.mkdir()
                with _steps(console) as say:
                    say("making up a source", 0, 0)
                    plans.make_source(dataset, place, seed, full, say)
                    folder = door.prepare_dataset(
                        dataset.name, place, root, say, synthetic="full" if full else "miniature"
                    )
            except OSError as error:
                raise InputError(f"Cannot write to {root} ({error}); nothing was prepared.") from error
            finally:
                shutil.rmtree(place, ignore_errors=True)
        return f"{dataset.name} is ready, with made-up images: {folder}"

    return _each(_named(names), work, console)


def _each(found: Sequence[Dataset], work: Callable[[Dataset], str], console: Console) -> int:
    """Does the work for every dataset; with several, one that fails does not keep the others from it."""
    failures = 0
    for dataset in found:
        try:
            console.print(work(dataset), **_VERBATIM)
        except InputError as error:
            if len(found) == 1:
                raise
            failures += 1
            console.print(f"{dataset.name} is not: {error}", style="red", **_VERBATIM)
    if failures:
        console.print(f"{len(found) - failures} of {len(found)} datasets are ready.", **_VERBATIM)
    return SOME_FAILED if failures else DONE


def verify(names: Sequence[str], root: Path, console: Console) -> int:
    """Checks prepared folders; prints what is wrong with them, or worth knowing, and returns 1 if anything is wrong.

    Raises:
        InputError: Unknown or embedded dataset, or no folder.
    """
    from s2a_bench.data import verify as door

    wrong = False
    for dataset in _named(names):
        with _steps(console) as say:
            found = door.verify_dataset(dataset.name, root, say)
        problems = [problem for problem in found if not problem.note]
        notes = [problem for problem in found if problem.note]
        for title, each in (("", problems), ("note: ", notes)):
            for problem in each[:_SHOWN]:
                console.print(f"{title}{problem}", **_VERBATIM)
            if len(each) > _SHOWN:
                console.print(f"{title}and {len(each) - _SHOWN} more.", **_VERBATIM)
        console.print(f"{dataset.name}: {len(problems) or 'no'} problems, {len(notes) or 'no'} notes.", **_VERBATIM)
        wrong = wrong or bool(problems)
    return SOME_FAILED if wrong else DONE


def _named(names: Sequence[str]) -> list[Dataset]:
    """The datasets meant; a suite stands for all of its own.

    Raises:
        InputError: An unknown name, or none at all.
    """
    if not names:
        raise InputError("Name a dataset or a suite; `s2a-bench data list` shows them.")
    found: dict[str, Dataset] = {}
    for name in names:
        inside = datasets.SUITES[name].datasets if name in datasets.SUITES else ()
        known = [datasets.DATASETS[name]] if name in datasets.DATASETS else []
        if inside and known and inside != (name,):
            raise InputError(
                f"{name!r} is a dataset and a suite; write {known[0].suite}/{name} for the one, {' '.join(inside)} "
                "for the other."
            )
        if not inside:
            try:
                inside = (datasets.find_dataset(name).name,)
            except InputError:
                if "/" in name:
                    raise
                raise unknown("dataset or suite", name, [*datasets.SUITES, *datasets.DATASETS]) from None
        found |= {each: datasets.DATASETS[each] for each in inside}
    return list(found.values())


@contextlib.contextmanager
def _steps(console: Console) -> Iterator[Progress]:
    """Shows what a long command is doing: on a terminal live, elsewhere each step once and, twice a minute, how far."""
    last, spoken = "", time.monotonic()
    status = console.status("") if console.is_terminal else contextlib.nullcontext()

    def say(what: str, done: int, total: int) -> None:
        nonlocal last, spoken
        new, now = what != last, time.monotonic()
        if not new and now - spoken < (_LIVE if console.is_terminal else _HEARTBEAT):
            return
        text = f"{what} {done:,}{f'/{total:,}' if total else ''}"
        if console.is_terminal:
            status.update(text)  # type: ignore[union-attr]
        else:
            console.print(what if new else text, **_VERBATIM)
        last, spoken = what, now

    with status:
        yield say

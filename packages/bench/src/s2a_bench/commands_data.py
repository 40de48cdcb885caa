"""What each ``data`` command does."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from s2a_bench import datasets
from s2a_bench.dataset_types import Dataset
from s2a_bench.errors import InputError
from s2a_bench.verify import Progress

DONE, SOME_FAILED = 0, 1
_VERBATIM: Any = {"markup": False, "highlight": False, "soft_wrap": True}
_SHOWN = 20
"""Problems printed before the rest is only counted; notes have a share of their own."""


def show(root: Path | None, console: Console) -> int:
    """Prints every dataset and what of it is on disk."""
    from s2a_bench import data

    table = Table("dataset", "suite", "group", "classes", "train/val/test", "state", "data id", "where")
    for row in data.list_datasets(root):
        state = "here" if row.present else "missing"
        if row.present and not row.prepared and row.split_id is None:
            state = "here, no manifest"
        if row.synthetic:
            state += ", synthetic"
        if row.lossy:
            state += ", lossy"
        sizes = "/".join("?" if n is None else f"{n}" for n in (row.counts.train, row.counts.val, row.counts.test))
        table.add_row(row.name, row.suite, row.group, str(row.classes), sizes, state, row.data_id or "", row.where)
    console.print(table)
    if root is None:
        console.print("Embedded datasets only; pass --data-dir to see what is on disk.")
    return DONE


def prepare(names: Sequence[str], source: Path, root: Path, split: Path | None, console: Console) -> int:
    """Brings a download into the standard folder.

    Raises:
        InputError: See ``prepare.prepare``.
    """
    from s2a_bench import prepare as door

    for dataset in _named(names):
        with _steps(console) as say:
            folder = door.prepare(dataset.name, source, root, say, split=split)
        console.print(f"{dataset.name} is ready: {folder}", **_VERBATIM)
    return DONE


def download(names: Sequence[str], root: Path, split: Path | None, console: Console) -> int:
    """Gets a dataset's files and brings them into the standard folder.

    Raises:
        InputError: No address is known, a file cannot be had, or as ``prepare``.
    """
    from s2a_bench import download as door

    for dataset in _named(names):
        folder = root / ".downloads" / dataset.name
        if not dataset.remotes:
            raise InputError(
                f"{dataset.name} cannot be downloaded without its makers' leave; get it from {dataset.where} and pass "
                "it to --from."
            )
        with _steps(console) as say:
            door.fetch(dataset.remotes, folder, say)
        prepare([dataset.name], folder, root, split, console)
    return DONE


def make(names: Sequence[str], root: Path, seed: int, full: bool, console: Console) -> int:
    """Makes up sources in their original formats and brings them into the standard folder.

    Raises:
        InputError: An embedded dataset, or as ``prepare``.
    """
    from s2a_bench import prepare as door
    from s2a_bench.synthetic import plans

    for dataset in _named(names):
        root.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=root, prefix=f".{dataset.name}.", suffix=".source"))
        try:
            with _steps(console) as say:
                say("making up a source", 0, 0)
                plans.make(dataset, place, seed, full)
                folder = door.prepare(dataset.name, place, root, say, synthetic="full" if full else "miniature")
        finally:
            shutil.rmtree(place, ignore_errors=True)
        console.print(f"{dataset.name} is ready, with made-up images: {folder}", **_VERBATIM)
    return DONE


def verify(name: str, root: Path, console: Console) -> int:
    """Checks a prepared folder; prints what is wrong with it, or worth knowing, and returns 1 if anything is wrong.

    Raises:
        InputError: Unknown or embedded dataset, or no folder.
    """
    from s2a_bench import verify as door

    with _steps(console) as say:
        found = door.verify(name, root, say)
    problems = [problem for problem in found if not problem.note]
    notes = [problem for problem in found if problem.note]
    for title, each in (("", problems), ("note: ", notes)):
        for problem in each[:_SHOWN]:
            console.print(f"{title}{problem}", **_VERBATIM)
        if len(each) > _SHOWN:
            console.print(f"{title}and {len(each) - _SHOWN} more.", **_VERBATIM)
    console.print(f"{name}: {len(problems) or 'no'} problems, {len(notes) or 'no'} notes.", **_VERBATIM)
    return SOME_FAILED if problems else DONE


def _named(names: Sequence[str]) -> list[Dataset]:
    """The datasets meant; a suite stands for all of its own.

    Raises:
        InputError: An unknown name, or none at all.
    """
    if not names:
        raise InputError("Name a dataset or a suite; `s2a-bench data list` shows them.")
    found: dict[str, Dataset] = {}
    for name in names:
        inside = datasets.SUITES[name].datasets if name in datasets.SUITES else (datasets.find(name).name,)
        found |= {each: datasets.DATASETS[each] for each in inside}
    return list(found.values())


@contextlib.contextmanager
def _steps(console: Console) -> Iterator[Progress]:
    """Shows what a long command is doing: on a terminal live, elsewhere the name of each step once."""
    last = ""
    status = console.status("") if console.is_terminal else contextlib.nullcontext()

    def say(what: str, done: int, total: int) -> None:
        nonlocal last
        if console.is_terminal:
            status.update(f"{what} {done}{f'/{total}' if total else ''}")  # type: ignore[union-attr]
        elif what != last:
            console.print(what, **_VERBATIM)
        last = what

    with status:
        yield say

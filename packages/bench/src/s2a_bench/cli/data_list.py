"""What ``s2a-bench data list`` shows of datasets, and which command comes next for one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2a_bench.cli.common import DONE, print_verbatim, say_next
from s2a_bench.cli.data_own import list_own_facts
from s2a_bench.cli.fitted_table import Column, print_table
from s2a_bench.data.table.types import Dataset

if TYPE_CHECKING:
    from s2a_bench.data.listing import DatasetStatus


def print_list(found: Sequence[Dataset], root: Path | None, console: Console) -> int:
    """Prints every dataset and what of it is on disk; of those that are given, all that is known."""
    from s2a_bench.data import listing

    rows = {row.name: row for row in listing.list_datasets(root)}
    if found:
        for dataset in found:
            console.print(_card(dataset, rows[dataset.name]))
        say_next(console, f"Next: {next_of(found[-1], rows[found[-1].name].present, root)}")
        return DONE
    columns = [Column("dataset", justify="left"), Column("suite", 1, "left"), Column("group", 4, "left")]
    columns += [Column("classes", 2), Column("train/val/test", 3), Column("state", justify="left", wraps=True)]
    known = any(row.data_id for row in rows.values())
    columns += [Column("data id", 5, "left")] if known else []
    texts = []
    for row in rows.values():
        sizes = "/".join("?" if n is None else f"{n}" for n in (row.counts.train, row.counts.val, row.counts.test))
        texts.append(
            [
                row.name,
                row.suite,
                row.group,
                str(row.classes),
                sizes,
                _state(row),
                *([row.data_id or ""] if known else []),
            ]
        )
    print_table(console, "", columns, texts)
    if root is None:
        print_verbatim(console, "Pass --data-dir DIR to see what is on disk.")
    print_verbatim(console, "`s2a-bench data list NAME` tells all about one: lists, licence, where to get it.")
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
        "suite": ", ".join(dict.fromkeys((dataset.suite, dataset.group))),
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
        **list_own_facts(dataset, row),
    }
    for title, text in facts.items():
        if text:
            card.add_row(title, Text(text))
    return card


def next_of(dataset: Dataset, present: bool, root: Path | None) -> str:
    """What to run next of a dataset: prepare it, or train on it."""
    if present:
        return sweep_command([dataset], root)
    how = "--from PATH" if not dataset.remotes else "--download"
    return f"s2a-bench data prepare {dataset.name} {how} --data-dir {shlex.quote(str(root or 'DIR'))}"


def sweep_command(found: Sequence[Dataset], root: Path | None) -> str:
    """Compares the methods on prepared datasets, those of the first one's suite."""
    suite = found[0].suite
    names = " ".join(dataset.name for dataset in found if dataset.suite == suite)
    where = "" if found[0].embedded else f" --data-dir {shlex.quote(str(root or 'DIR'))}"
    return f"s2a-bench sweep --suite {suite} --datasets {names}{where}"

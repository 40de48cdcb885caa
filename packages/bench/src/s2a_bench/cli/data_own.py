"""What ``s2a-bench data`` does with the user's own images."""

from __future__ import annotations

import difflib
import shlex
from typing import TYPE_CHECKING

from rich.console import Console

from s2a_bench.cli.common import DONE, print_verbatim
from s2a_bench.cli.steps import show_steps
from s2a_bench.data.table.own import TAKEN_NAMES
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError, InputErrors, Mistakes, sentences

if TYPE_CHECKING:
    from s2a_bench.cli.data import DataPrepare
    from s2a_bench.data.listing import DatasetStatus

SHOWN = 20
"""Classes and images that are named before the rest is only counted."""


def list_own_facts(dataset: Dataset, row: DatasetStatus) -> dict[str, str]:
    """What is known of own images besides."""
    if row.own is None:
        return {}
    names = dataset.class_names
    own = row.own
    alike = own.get("near_duplicates")
    return {
        "class names": ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""),
        "made from": f"{own.get('format')} {dataset.source}",
        "drawn": ", ".join(own.get("drawn", ())) or "nothing",
        "near-duplicates": f"{alike['images']} images in {alike['groups']} groups" if alike else "",
        "grouped by": own.get("grouped_by") or "",
        "left out": ", ".join(each["image"] for each in own.get("skipped", ())[:SHOWN]),
    }


def prepare_own_images(command: DataPrepare, console: Console) -> int:
    """Makes a dataset of suite ``own``.

    Raises:
        InputError: See ``own.prepare.prepare_own``; also of a name much like one of the table, which is said.
    """
    from s2a_bench.data.own import prepare as door

    (name,), source, root = command.datasets, command.source, command.data_dir
    assert source is not None
    mistakes = Mistakes()
    if command.full:
        mistakes.add(InputError("--full goes with --synthetic."))
    if command.split is not None:
        mistakes.add(
            InputError("--split goes with datasets of the table; of own images, give a table with a split column.")
        )
    options = door.OwnOptions(
        val=command.val,
        test=command.test,
        seed=command.seed,
        group_column=command.group_column,
        path_column=command.path_column,
        label_column=command.label_column,
        split_column=command.split_column,
        near_duplicates=not command.no_near_duplicates,
        skip_unreadable=command.skip_unreadable,
        in_place=command.in_place,
    )
    try:
        mistakes.raise_all()
        with show_steps(console) as say:
            folder = door.prepare_own(name, source, root, options, say)
    except InputError as error:
        near = difflib.get_close_matches(name, TAKEN_NAMES, n=3, cutoff=0.8)
        if not near:
            raise
        hint = f" ({name!r} stands for your own images; the table has {' and '.join(near)}.)"
        *others, last = sentences(error)
        raise InputErrors([*others, last + hint]) from error
    print_verbatim(console, f"{name} is ready: {folder}")
    where = shlex.quote(str(root))
    print_verbatim(console, f"Train on it: s2a-bench finetune {name} --data-dir {where}")
    print_verbatim(console, f"Compare methods: s2a-bench sweep --suite own --datasets {name} --data-dir {where}")
    return DONE

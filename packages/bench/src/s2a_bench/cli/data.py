"""``s2a-bench data list``, ``prepare`` and ``verify``."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from s2a_bench.cli.common import DONE, SOME_FAILED, Flag, Folder, argument, print_verbatim, say_next
from s2a_bench.cli.data_list import print_list, sweep_command
from s2a_bench.cli.data_own import prepare_own_images
from s2a_bench.cli.steps import show_steps
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.own import TAKEN_NAMES
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError, Mistakes, unknown

_OWN_FLAGS = (
    *("val", "test", "group_column", "path_column", "label_column", "split_column"),
    *("no_near_duplicates", "skip_unreadable", "in_place"),
)
Datasets = Annotated[tyro.conf.Positional[tuple[str, ...]], argument("NAME ...")]
ColumnName = Annotated[str | None, argument("NAME")]
_SHOWN = 20
"""Problems printed before the rest is only counted; notes have a share of their own."""


@dataclasses.dataclass(frozen=True)
class DataList:
    """Lists every dataset and what of it is on disk; with names, everything that is known of these.

    Attributes:
        datasets: Which datasets; a suite's name stands for all of its datasets, "own" for those of your own images.
        data_dir: Where prepared datasets lie.
    """

    datasets: Annotated[tyro.conf.Positional[tuple[str, ...]], argument("[NAME ...]")] = ()
    data_dir: Folder = None

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: Unknown names.
        """
        return print_list(_named(self.datasets, self.data_dir) if self.datasets else [], self.data_dir, console)


@dataclasses.dataclass(frozen=True)
class DataPrepare:
    """Brings a download, or your own images, into the standard folder.

    Exactly one of --from, --download and --synthetic says from where. One NAME outside the table, with --from, makes a
    dataset of suite "own": of class folders (with or without train, val and test above them), an archive of these, a
    table (CSV, TSV, Parquet) with columns of paths and labels, or a Hugging Face dataset.

    Attributes:
        datasets: Which datasets; a suite's name stands for all of its datasets.
        source: The archive, the folder it extracts to, or a folder that holds either, or one such folder per dataset
            under the dataset's name; or your own images.
        data_dir: Where prepared datasets lie.
        download: Get the files first, into DIR/.downloads/; interrupted downloads go on where they ended.
        synthetic: Make up a source in the original format: offline, marked in every record.
        full: With --synthetic: as many test images as the real dataset has.
        seed: Of --synthetic, and of the draw of own images.
        split: A published split: CoOp's split_zhou_*.json, or a folder with VPT's train.json, val.json, test.json.
        val: Own images: fraction of each class that is drawn for validation where the source has no such part.
        test: Own images: the same for the test part.
        group_column: Own images, table: images with the same value in it (of one patient, say) stay in one part.
        path_column: Own images, table: the column of paths, if it is called in no usual way.
        label_column: Own images, table: the column of class names, likewise.
        split_column: Own images, table: the column with train, val or test, likewise.
        no_near_duplicates: Own images: images that look the same need not stay in one part.
        skip_unreadable: Own images: leave out files that cannot be used, instead of ending.
        in_place: Own images: use files of a folder where they lie instead of copying them.
    """

    datasets: Datasets
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    source: Annotated[Path | None, argument("PATH", "from")] = None
    download: Flag = False
    synthetic: Flag = False
    full: Flag = False
    seed: int = 0
    split: Annotated[Path | None, argument("PATH")] = None
    val: Annotated[float, tyro.conf.arg(metavar="F")] = 0.1
    test: Annotated[float, tyro.conf.arg(metavar="F")] = 0.1
    group_column: ColumnName = None
    path_column: ColumnName = None
    label_column: ColumnName = None
    split_column: ColumnName = None
    no_near_duplicates: Flag = False
    skip_unreadable: Flag = False
    in_place: Flag = False

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: Unknown names, flags that exclude each other, or paths that are not there; for one dataset also
                what is wrong with its files.
        """
        if self._means_own():
            return prepare_own_images(self, console)
        found = self._checked()
        if self.synthetic:
            return make_up_datasets(found, self.data_dir, self.seed, self.full, console)
        if self.download:
            return download_datasets(found, self.data_dir, self.split, console)
        assert self.source is not None
        return prepare_datasets(found, self.source, self.data_dir, self.split, console)

    def _means_own(self) -> bool:
        """Whether one name is given that is none of the table (suite/name neither), with --from."""
        if len(self.datasets) != 1 or self.source is None or self.download or self.synthetic:
            return False
        name = self.datasets[0]
        suite, slash, _ = name.partition("/")
        return name not in TAKEN_NAMES and not (slash and suite in TAKEN_NAMES - {datasets.OWN})

    def _checked(self) -> list[Dataset]:
        mistakes = Mistakes()
        found: list[Dataset] = []
        with mistakes.collecting():
            found = _named(self.datasets, None)
        if flags := [flag for flag, value, usual in self._own_flags() if value != usual]:
            mistakes.add(
                InputError(f"{', '.join(flags)} go with --from and one NAME outside the table, for your own images.")
            )
        if (self.source is not None) + self.download + self.synthetic != 1:
            mistakes.add(InputError("Give exactly one of --from PATH, --download and --synthetic."))
        if (self.full or self.seed) and not self.synthetic:
            mistakes.add(InputError("--full and --seed go with --synthetic."))
        if self.seed < 0:
            mistakes.add(InputError(f"--seed {self.seed} is negative; give 0 or more."))
        if self.split is not None and self.synthetic:
            mistakes.add(InputError("--split goes with --from and --download: made-up sources have their own lists."))
        for flag, path in (("--from", self.source), ("--split", self.split)):
            if path is not None and not self.synthetic and not path.exists():
                mistakes.add(InputError(f"There is nothing at {flag} {path}; give the path of a download."))
        mistakes.raise_all()
        return found

    def _own_flags(self) -> Iterator[tuple[str, object, object]]:
        """Flag, value and default of what is said of own images alone."""
        for field in dataclasses.fields(self):
            if field.name in _OWN_FLAGS:
                yield f"--{field.name.replace('_', '-')}", getattr(self, field.name), field.default


@dataclasses.dataclass(frozen=True)
class DataVerify:
    """Checks prepared datasets: counts, hashes, every image.

    Attributes:
        datasets: Which datasets; a suite's name stands for all of its datasets.
        data_dir: Where prepared datasets lie.
    """

    datasets: Datasets
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")]

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: Unknown or embedded datasets, or no folder.
        """
        return verify_datasets(_named(self.datasets, self.data_dir), self.data_dir, console)


def prepare_datasets(found: Sequence[Dataset], source: Path, root: Path, split: Path | None, console: Console) -> int:
    """Brings downloads into the standard folder.

    Args:
        found: Datasets.
        source: A download, or a folder of downloads; a folder in it that has a dataset's name is looked into first.
        root: Data root.
        split: A published split.
        console: Where to say so.

    Returns:
        0, or 1 if some of several could not be prepared; the others are.

    Raises:
        InputError: See ``prepare.prepare_dataset``; for one dataset.
    """
    from s2a_bench.data import prepare as door

    def work(dataset: Dataset) -> str:
        own = source / dataset.name
        with show_steps(console) as say:
            folder = door.prepare_dataset(dataset.name, own if own.is_dir() else source, root, say, split=split)
        return f"{dataset.name} is ready: {folder}"

    return _each(found, work, root, console)


def download_datasets(found: Sequence[Dataset], root: Path, split: Path | None, console: Console) -> int:
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
        with show_steps(console) as say:
            fetcher.download_files(dataset.remotes, folder, say)
        with show_steps(console) as say:
            return f"{dataset.name} is ready: {door.prepare_dataset(dataset.name, folder, root, say, split=split)}"

    return _each(found, work, root, console)


def make_up_datasets(found: Sequence[Dataset], root: Path, seed: int, full: bool, console: Console) -> int:
    """Makes up sources in their original formats and brings them into the standard folder.

    Returns:
        As ``prepare``.

    Raises:
        InputError: An embedded dataset, or as ``prepare``.
    """
    from s2a_bench.data import prepare as door
    from s2a_bench.data.synthetic import plans
    from s2a_bench.files import reserved

    def work(dataset: Dataset) -> str:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot write to {root} ({error}); nothing was prepared.") from error
        place = root / f".{dataset.name}.source"
        with reserved(place) as held:
            if not held:
                raise InputError(f"Another process is making up {dataset.name} in {root}; wait for it to end.")
            shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
            try:
                place.mkdir()
                with show_steps(console) as say:
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

    return _each(found, work, root, console)


def _each(found: Sequence[Dataset], work: Callable[[Dataset], str], root: Path, console: Console) -> int:
    """Does the work for every dataset; with several, one that fails does not keep the others from it."""
    failures = 0
    ready: list[Dataset] = []
    for dataset in found:
        try:
            print_verbatim(console, work(dataset))
            ready.append(dataset)
        except InputError as error:
            if len(found) == 1:
                raise
            failures += 1
            print_verbatim(console, f"{dataset.name} is not: {error}", style="red")
    if failures:
        print_verbatim(console, f"{len(found) - failures} of {len(found)} datasets are ready.")
    if ready:
        say_next(console, f"Next: {sweep_command(ready, root)}")
    return SOME_FAILED if failures else DONE


def verify_datasets(found: Sequence[Dataset], root: Path, console: Console) -> int:
    """Checks prepared folders; prints what is wrong with them, or worth knowing, and returns 1 if anything is wrong.

    Raises:
        InputError: Unknown or embedded dataset, or no folder.
    """
    from s2a_bench.data import verify as door

    wrong = False
    for dataset in found:
        with show_steps(console) as say:
            noticed = door.verify_dataset(dataset.name, root, say)
        problems = [problem for problem in noticed if not problem.note]
        notes = [problem for problem in noticed if problem.note]
        for title, each in (("", problems), ("note: ", notes)):
            for problem in each[:_SHOWN]:
                print_verbatim(console, f"{title}{problem}")
            if len(each) > _SHOWN:
                print_verbatim(console, f"{title}and {len(each) - _SHOWN} more.")
        print_verbatim(console, f"{dataset.name}: {len(problems) or 'no'} problems, {len(notes) or 'no'} notes.")
        wrong = wrong or bool(problems)
    if not wrong:
        say_next(console, f"Next: {sweep_command(found, root)}")
    else:
        say_next(console, "Next: remove the folder of what has problems, and run s2a-bench data prepare for it again.")
    return SOME_FAILED if wrong else DONE


def _named(names: Sequence[str], root: Path | None) -> list[Dataset]:
    """The datasets meant; a suite stands for all of its own. Own ones are looked for under the root.

    Raises:
        InputError: Unknown names, all of them, or none at all.
    """
    if not names:
        raise InputError("Name a dataset or a suite; `s2a-bench data list` shows them.")
    mistakes = Mistakes()
    several = mistakes.each(lambda name: _meant(name, root), names)
    found = {dataset.name: dataset for each in several for dataset in each}
    mistakes.raise_all()
    return list(found.values())


def _meant(name: str, root: Path | None) -> list[Dataset]:
    if name == datasets.OWN:
        return [datasets.get_dataset(name, each, root) for each in datasets.default_datasets(name, root)]
    inside = datasets.SUITES[name].datasets if name in datasets.SUITES else ()
    known = datasets.DATASETS.get(name)
    if inside and known and inside != (name,):
        raise InputError(
            f"{name!r} is a dataset and a suite; write {known.suite}/{name} for the one, {' '.join(inside)} for the "
            "other."
        )
    if inside:
        return [datasets.DATASETS[each] for each in inside]
    try:
        return [datasets.find_dataset(name, root)]
    except InputError:
        if "/" in name:
            raise
        known = [*datasets.SUITES, *datasets.DATASETS, *datasets.own_datasets(root)]
        if name in known:  # an own dataset that cannot be used; the error says why
            raise
        raise unknown("dataset or suite", name, known) from None

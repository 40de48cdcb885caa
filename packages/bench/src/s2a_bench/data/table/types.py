"""Types of the table of datasets: a dataset, how to obtain it, and the rules that divide it into lists."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple


class ListNames(NamedTuple):
    """Names of a suite's four lists: training while tuning, validation, both together for the final run, and test."""

    train: str
    val: str
    both: str
    test: str


VTAB_LISTS = ListNames("train800", "val200", "train800val200", "test")
PLAIN_LISTS = ListNames("train", "val", "trainval", "test")


class Counts(NamedTuple):
    """Images per list; ``None``: not checked."""

    train: int | None
    val: int | None
    both: int | None
    test: int | None


def make_counts(train: int, val: int, test: int) -> Counts:
    """Makes counts with ``both = train + val``."""
    return Counts(train, val, train + val, test)


@dataclasses.dataclass(frozen=True)
class SliceRule:
    """The VTAB-1k rule: slices of tensorflow_datasets' stored order (Zhai et al., ``task_adaptation/data``).

    Train is the first ``train`` images of ``train_part``, val the ``val`` images of ``val_part`` from the fraction
    ``val_from`` on, test the images of ``test_part`` from ``test_from`` to the end. Parts that overlap are cut so
    that VTAB's own numbers come out: ``train[45000:45200]`` of CIFAR-100 is ``val_from=0.9`` of 50,000.
    """

    train_part: str = "train"
    val_part: str = "train"
    val_from: float = 0.9
    test_part: str = "test"
    test_from: float = 0.0
    train: int = 800
    val: int = 200


@dataclasses.dataclass(frozen=True)
class PoolRule:
    """VTAB-1k's Caltech101: ``per_class`` images of each class form a pool; lists are slices of it, the rest is test.

    Attributes:
        per_class: Images of each class in the pool.
        train: Start and end in the pool.
        val: Start and end in the pool.
    """

    per_class: int = 30
    train: tuple[int, int] = (0, 800)
    val: tuple[int, int] = (2754, 2954)


@dataclasses.dataclass(frozen=True)
class OfficialRule:
    """The source's own parts; where it has no ``"val"``, ``val`` of each class's training images are held out.

    Attributes:
        val: Fraction of each class, rounded to a whole number of images.
    """

    val: float = 0.1


@dataclasses.dataclass(frozen=True)
class FractionRule:
    """CoOp's rule for sets without parts: each class's images by fractions, rounded; what is left is the test set."""

    train: float = 0.5
    val: float = 0.2


Rule = SliceRule | PoolRule | OfficialRule | FractionRule


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How ``prepare_dataset`` turns a download into the standard folder.

    Attributes:
        reader: Key of ``readers.registry.load_readers()``: the format in which its makers publish it.
        rule: How its images are divided into lists.
        archives: File names of the archives people download (``*`` stands for anything), the outer ones first.
        target: Which label to use where the source has several; ``""``: it has one.
        class_names: In label order, where the source does not name its classes or orders them differently.
        folder: Name of the folder with the images, where the reader needs one.
        skip: Class folders that this dataset leaves out.
        seed: Of random orders (see ``splits.py``).
        in_place: Whether images of a folder are used in place instead of copied.
        splits: Format of published split files that replace the rule where given or found: ``"coop"`` or ``"vpt"``.
    """

    reader: str
    rule: Rule
    archives: tuple[str, ...]
    target: str = ""
    class_names: tuple[str, ...] = ()
    folder: str = ""
    skip: tuple[str, ...] = ()
    seed: int = 0
    in_place: bool = False
    splits: Literal["", "coop", "vpt"] = ""


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Attributes:
        url: ``https://...``, ``hf://datasets/OWNER/NAME/PATH`` for the Hugging Face hub, or ``gdrive://KEY`` for Google
            Drive.
        file: Name of the downloaded file.
        digest: ``"md5:..."`` or ``"sha256:..."`` of its content as its makers, torchvision or tensorflow_datasets state
            it; ``""``: none, and then an ``http://`` address is refused.
    """

    url: str
    file: str
    digest: str = ""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One row of the table.

    Attributes:
        name: Key of ``DATASETS``, unless it is an own dataset, and name of the folder under the data root.
        suite: Key of ``SUITES``.
        group: Group of tasks that tables average over, e.g. ``"natural"``.
        classes: Number of classes, the size of the head.
        counts: Images per list.
        source: Who made it.
        licence: What its makers allow; not legal advice.
        where: How to get it.
        aliases: Other names within the suite, of the dataset and of its folder.
        metric: What is reported.
        encoding: How its makers publish the images: ``"jpeg"`` files, or ``"lossless"`` (PNG files or arrays).
        embedded: Rendered or shipped with the package; needs no data root.
        synthetic: Rendered by this package.
        preparation: How a download becomes the standard folder; ``None``: embedded.
        remotes: Files that ``prepare --download`` fetches; empty where the makers require a registration.
        class_names: In label order, where the row was made from a manifest (suite ``own``).
    """

    name: str
    suite: str
    group: str
    classes: int
    counts: Counts
    source: str
    licence: str
    where: str
    aliases: tuple[str, ...] = ()
    metric: Literal["accuracy"] = "accuracy"
    encoding: Literal["jpeg", "lossless"] = "jpeg"
    embedded: bool = False
    synthetic: bool = False
    preparation: Preparation | None = None
    remotes: tuple[RemoteFile, ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def lists(self) -> ListNames:
        """Names of its lists."""
        return VTAB_LISTS if self.suite in ("mini", "vtab", "real") else PLAIN_LISTS

    def count(self, name: str) -> int | None:
        """Images of one of ``lists``; ``None``: not checked."""
        return self.counts[self.lists.index(name)]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A named set of datasets that share a protocol.

    Attributes:
        name: Key of ``SUITES``.
        description: One line.
        datasets: Their names, in the order of tables.
        defaults: Those a sweep runs when none is named.
        view: How images reach the model: ``"direct"``: resized to a square, no augmentation (VTAB-1k); ``"crop"``:
            short side to 8/7 of the size, random crop and flip in training, centre crop otherwise (VPT's FGVC).
        seeds: Those a sweep runs when none is named.
    """

    name: str
    description: str
    datasets: tuple[str, ...]
    defaults: tuple[str, ...]
    view: Literal["direct", "crop"] = "direct"
    seeds: tuple[int, ...] = (0,)

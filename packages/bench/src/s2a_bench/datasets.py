"""ONE table of suites and datasets. Adding a dataset is adding one entry to it, and nothing else.

Classes, groups and counts of ``vtab`` are those of the VTAB-1k protocol (Zhai et al., arXiv 1910.04867, and its code
``google-research/task_adaptation``). The class count always comes from here: some classes of a test list are absent
from its 1,000 training images.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from s2a_bench.errors import InputError, unknown


class Counts(NamedTuple):
    """Images per list of the standard folder; ``None``: not checked."""

    train800: int | None
    val200: int | None
    train800val200: int | None
    test: int | None


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """How ``<folder>/<class>/<image>`` becomes the four lists; read by ``prepare``.

    ``per_class`` images of every class, chosen by hash, form a pool in hashed order; ``train`` and ``val`` are slices
    of that pool (VTAB's own numbers) and everything outside the pool is the test set.

    Attributes:
        folder: Name of the folder that holds the class folders.
        archives: File names of the archive people download, where it holds ``folder``.
        outer: Names without suffix of a folder or ``.zip`` that may hold one of the above.
        class_names: In label order; matched with folder names without regard to case.
        per_class: Images of each class in the pool.
        train: Start and end in the pool.
        val: Start and end in the pool.
        seed: Of the hashes.
    """

    folder: str
    archives: tuple[str, ...]
    outer: tuple[str, ...]
    class_names: tuple[str, ...]
    per_class: int = 30
    train: tuple[int, int] = (0, 800)
    val: tuple[int, int] = (2754, 2954)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One row of the table.

    Attributes:
        name: Key of ``DATASETS`` and name of the folder under the data root.
        suite: Key of ``SUITES``.
        group: Whose mean the tables print, e.g. ``"natural"``.
        classes: Size of the head.
        counts: Images per list.
        source: Who made it.
        licence: What its makers allow; not legal advice.
        where: How to get it.
        aliases: Other names, of the dataset and of its folder.
        metric: What is reported.
        embedded: Rendered or shipped with the package; needs no data root.
        synthetic: Rendered by this package.
        recipe: How ``prepare`` brings a download into the standard folder; ``None``: it cannot.
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
    embedded: bool = False
    synthetic: bool = False
    recipe: ClassFolders | None = None


@dataclasses.dataclass(frozen=True)
class Suite:
    """A named set of datasets that share a protocol.

    Attributes:
        name: Key of ``SUITES``.
        description: One line.
        datasets: Their names, in the order of tables.
        defaults: Those a sweep runs when none is named.
    """

    name: str
    description: str
    datasets: tuple[str, ...]
    defaults: tuple[str, ...]


_CALTECH101_CLASSES = tuple(
    """accordion airplanes anchor ant background_google barrel bass beaver binocular bonsai brain brontosaurus buddha
    butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab crayfish
    crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu euphonium ewer
    faces faces_easy ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone hedgehog
    helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop leopards llama lobster lotus mandolin mayfly
    menorah metronome minaret motorbikes nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver
    rhino rooster saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish stegosaurus
    stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly wheelchair wild_cat windsor_chair wrench
    yin_yang""".split()
)

_RENDERED = "rendered by this package from a fixed seed"
_IN_PACKAGE = "nothing to download"
_NOAH = "VTAB-1k folder in NOAH's layout, or tensorflow_datasets "
_NONE_STATED = "none known"


def _mini(name: str, group: str, classes: int, test: int, source: str, licence: str, synthetic: bool = True) -> Dataset:
    counts = Counts(800, 200, 1000, test)
    return Dataset(
        name, "mini", group, classes, counts, source, licence, _IN_PACKAGE, embedded=True, synthetic=synthetic
    )


def _vtab(
    name: str, group: str, classes: int, test: int, source: str, licence: str, tfds: str, *aliases: str
) -> Dataset:
    counts = Counts(800, 200, 1000, test)
    return Dataset(name, "vtab", group, classes, counts, source, licence, f"{_NOAH}{tfds}", aliases)


_NAT, _SPEC, _STR = "natural", "specialized", "structured"

_TABLE: tuple[Dataset, ...] = (
    _mini("digits", _NAT, 10, 797, "UCI handwritten digits, by scikit-learn", "CC BY 4.0 (UCI)", synthetic=False),
    _mini("textures", _SPEC, 8, 2000, _RENDERED, "this package's"),
    _mini("orientation", _STR, 16, 2000, _RENDERED, "this package's"),
    _mini("location", _STR, 16, 2000, _RENDERED, "this package's"),
    _mini("count", _STR, 8, 2000, _RENDERED, "this package's"),
    _vtab("cifar", _NAT, 100, 10000, "Krizhevsky 2009", _NONE_STATED, "cifar100:3", "cifar100", "cifar_100"),
    Dataset(
        "caltech101",
        "vtab",
        _NAT,
        102,
        Counts(800, 200, 1000, 6084),
        "Li, Andreeto, Ranzato and Perona 2003",
        "CC BY 4.0",
        "https://data.caltech.edu/records/mzrjq-6wc02 (caltech-101.zip)",
        ("caltech_101", "caltech-101"),
        recipe=ClassFolders(
            "101_ObjectCategories", ("101_ObjectCategories.tar.gz",), ("caltech-101",), _CALTECH101_CLASSES
        ),
    ),
    _vtab("dtd", _NAT, 47, 1880, "Cimpoi et al. 2014", "research use", "dtd:3 (fold 1)"),
    _vtab(
        "oxford_flowers102",
        _NAT,
        102,
        6149,
        "Nilsback and Zisserman 2008",
        _NONE_STATED,
        "oxford_flowers102:2",
        "flowers102",
        "flowers",
    ),
    _vtab(
        "oxford_iiit_pet",
        _NAT,
        37,
        3669,
        "Parkhi et al. 2012",
        "CC BY-SA 4.0",
        "oxford_iiit_pet:3",
        "oxford_pet",
        "pets",
        "pet",
    ),
    _vtab("svhn", _NAT, 10, 26032, "Netzer et al. 2011", "non-commercial use", "svhn_cropped:3", "svhn_cropped"),
    _vtab("sun397", _NAT, 397, 21750, "Xiao et al. 2010", "research use", "sun397:4", "sun"),
    _vtab("patch_camelyon", _SPEC, 2, 32768, "Veeling et al. 2018", "CC0", "patch_camelyon:2", "camelyon", "pcam"),
    _vtab("eurosat", _SPEC, 10, 5400, "Helber et al. 2019", "MIT", "eurosat:2", "euro_sat"),
    _vtab("resisc45", _SPEC, 45, 6300, "Cheng et al. 2017", "research use", "resisc45:3 (manual download)", "resisc"),
    _vtab(
        "diabetic_retinopathy",
        _SPEC,
        5,
        42670,
        "Kaggle and EyePACS 2015",
        "Kaggle competition rules",
        "diabetic_retinopathy_detection/btgraham-300:3 (manual download)",
        "diabetic_retinopathy_detection",
        "retinopathy",
    ),
    _vtab("clevr_count", _STR, 8, 15000, "Johnson et al. 2017", "CC BY 4.0", "clevr:3"),
    _vtab("clevr_dist", _STR, 6, 15000, "Johnson et al. 2017", "CC BY 4.0", "clevr:3", "clevr_distance"),
    _vtab("dmlab", _STR, 6, 22735, "Zhai et al. 2019, frames of DeepMind Lab", _NONE_STATED, "dmlab:2"),
    _vtab("kitti", _STR, 4, 711, "Geiger et al. 2013", "CC BY-NC-SA 3.0", "kitti:3", "kitti_distance"),
    _vtab(
        "dsprites_loc",
        _STR,
        16,
        73728,
        "Matthey et al. 2017",
        "Apache 2.0",
        "dsprites:2 (label_x_position, 16 bins)",
        "dsprites_location",
    ),
    _vtab(
        "dsprites_ori",
        _STR,
        16,
        73728,
        "Matthey et al. 2017",
        "Apache 2.0",
        "dsprites:2 (label_orientation, 16 bins)",
        "dsprites_orientation",
    ),
    _vtab("smallnorb_azi", _STR, 18, 12150, "LeCun et al. 2004", "research use", "smallnorb:2", "smallnorb_azimuth"),
    _vtab("smallnorb_ele", _STR, 9, 12150, "LeCun et al. 2004", "research use", "smallnorb:2", "smallnorb_elevation"),
)

DATASETS: dict[str, Dataset] = {entry.name: entry for entry in _TABLE}
"""Every dataset by name."""


def _suite(name: str, description: str, defaults: tuple[str, ...] = ()) -> Suite:
    members = tuple(entry.name for entry in _TABLE if entry.suite == name)
    return Suite(name, description, members, defaults or members)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        _suite(
            "mini",
            "Five embedded tasks of 32 x 32 pixels in the VTAB-1k protocol; offline.",
            ("digits", "textures", "location"),  # One of each group: a first look in minutes.
        ),
        _suite("vtab", "VTAB-1k: 19 tasks of 1,000 training images in three groups; folders under the data root."),
    )
}
"""Every suite by name."""


def get_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        InputError: There is none.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name]


def get(suite: str, name: str) -> Dataset:
    """The dataset of that name or alias in a suite.

    Raises:
        InputError: No such suite, or no such dataset in it.
    """
    members = [DATASETS[member] for member in get_suite(suite).datasets]
    for entry in members:
        if name == entry.name or name in entry.aliases:
            return entry
    if name in DATASETS:
        home = DATASETS[name].suite
        raise InputError(f"Dataset {name!r} is not in suite {suite!r} but in {home!r}; use --suite {home}.")
    raise unknown(f"dataset of suite {suite!r}", name, [alias for d in members for alias in (d.name, *d.aliases)])


def find(name: str) -> Dataset:
    """The dataset of that name or alias in any suite.

    Raises:
        InputError: There is none.
    """
    if name in DATASETS:
        return DATASETS[name]
    for entry in DATASETS.values():
        if name in entry.aliases:
            return entry
    raise unknown("dataset", name, DATASETS)

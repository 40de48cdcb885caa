"""Values that several rows of the table of datasets share: makers, downloads, digests, constructors of rows.

Digests of downloads are those torchvision 0.29 states.
"""

from __future__ import annotations

from typing import Any, Literal

from s2a_bench.data.table.types import Counts, Dataset, OfficialRule, Preparation, RemoteFile, SliceRule, make_counts

CALTECH101_CLASSES = tuple(
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

NATURAL, SPECIALIZED, STRUCTURED, FINE_GRAINED = "natural", "specialized", "structured", "fine-grained"
UNKNOWN_LICENCE = "none known"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"


def mini_task(name: str, group: str, classes: int, test: int, synthetic: bool = True) -> Dataset:
    """An embedded task of the suite ``mini``."""
    source = "rendered by this package from a fixed seed" if synthetic else "UCI handwritten digits, by scikit-learn"
    licence = "this package's" if synthetic else "CC BY 4.0 (UCI)"
    sizes = make_counts(800, 200, test)
    return Dataset(
        name, "mini", group, classes, sizes, source, licence, "nothing to download", embedded=True, synthetic=synthetic
    )


def vtab_task(
    name: str,
    group: str,
    classes: int,
    test: int,
    source: str,
    licence: str,
    where: str,
    preparation: Preparation,
    **more: Any,
) -> Dataset:
    """A VTAB-1k task: 800 and 200 images, and ``test`` more."""
    return Dataset(
        name,
        "vtab",
        group,
        classes,
        make_counts(800, 200, test),
        source,
        licence,
        where,
        preparation=preparation,
        **more,
    )


def fgvc_dataset(
    name: str, classes: int, sizes: Counts, source: str, licence: str, where: str, preparation: Preparation, **more: Any
) -> Dataset:
    """A set of the paper's FGVC suite."""
    return Dataset(name, "fgvc", FINE_GRAINED, classes, sizes, source, licence, where, preparation=preparation, **more)


def domainnet_dataset(name: str, train: int, test: int) -> Dataset:
    """One of DomainNet's domains (the cleaned lists); a tenth of each class's training images is held out."""
    preparation = Preparation("domainnet", OfficialRule(), (f"{name}.zip",), target=name, in_place=True)
    address = "http://csr.bu.edu/ftp/visda/2019/multi-source"
    ground = "groundtruth/" if name in ("clipart", "painting") else ""
    return Dataset(
        f"domainnet_{name}",
        "domainnet",
        "domains",
        345,
        Counts(None, None, train, test),
        "Peng et al. 2019",
        "research use",
        f"http://ai.bu.edu/M3SDA ({name}.zip, {name}_train.txt, {name}_test.txt; the cleaned version)",
        (name,),
        preparation=preparation,
        remotes=(
            RemoteFile(f"{address}/{ground}{name}.zip", f"{name}.zip"),
            RemoteFile(f"{address}/domainnet/txts/{name}_train.txt", f"{name}_train.txt"),
            RemoteFile(f"{address}/domainnet/txts/{name}_test.txt", f"{name}_test.txt"),
        ),
    )


def cifar_dataset(name: str, classes: int, digest: str) -> Dataset:
    """CIFAR-10 or -100 whole; a tenth of each class's training images is held out."""
    archive = f"cifar-{classes}-python.tar.gz"
    rest = "the archive, or class folders {train,test}/CLASS/*"
    return Dataset(
        name,
        "cifar",
        "whole",
        classes,
        make_counts(45000, 5000, 10000),
        "Krizhevsky 2009",
        UNKNOWN_LICENCE,
        f"https://www.cs.toronto.edu/~kriz/cifar.html ({archive}; {rest})",
        encoding="lossless",
        preparation=Preparation("cifar", OfficialRule(0.1), (archive, f"{name}_images.tar.gz"), target="fine"),
        remotes=(RemoteFile(f"https://www.cs.toronto.edu/~kriz/{archive}", archive, f"md5:{digest}"),),
    )


CALTECH = {
    "source": "Li, Andreeto, Ranzato and Perona 2003",
    "licence": "CC BY 4.0",
    "where": "https://data.caltech.edu/records/mzrjq-6wc02 (caltech-101.zip)",
}
CALTECH_FILES: dict[str, Any] = {
    "archives": ("caltech-101.zip", "101_ObjectCategories.tar.gz"),
    "folder": "101_ObjectCategories",
}
CALTECH_ZIP = (
    RemoteFile(
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        "caltech-101.zip",
        "md5:3138e1922a9193bfa496528edbbc45d0",
    ),
)
CIFAR100_DIGEST = "eb9058c3a382ffc7106e4002c42a8d85"
DTD = {"source": "Cimpoi et al. 2014", "licence": "research use", "where": f"{OXFORD}/dtd (dtd-r1.0.1.tar.gz)"}
DTD_FILE = (
    RemoteFile(f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz", "dtd-r1.0.1.tar.gz", "md5:fff73e5086ae6bdbea199a49dfb8a4c1"),
)
FLOWERS = {
    "source": "Nilsback and Zisserman 2008",
    "licence": UNKNOWN_LICENCE,
    "where": f"{OXFORD}/flowers/102 (102flowers.tgz, imagelabels.mat, setid.mat)",
}
FLOWERS_FILES = (
    RemoteFile(f"{OXFORD}/flowers/102/102flowers.tgz", "102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa"),
    RemoteFile(f"{OXFORD}/flowers/102/imagelabels.mat", "imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d"),
    RemoteFile(f"{OXFORD}/flowers/102/setid.mat", "setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c"),
)
PETS = {
    "source": "Parkhi et al. 2012",
    "licence": "CC BY-SA 4.0",
    "where": f"{OXFORD}/pets (images.tar.gz, annotations.tar.gz)",
}
PETS_FILES = (
    RemoteFile(f"{OXFORD}/pets/data/images.tar.gz", "images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    RemoteFile(f"{OXFORD}/pets/data/annotations.tar.gz", "annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
)
EUROSAT = {
    "source": "Helber et al. 2019",
    "licence": "MIT",
    "where": "https://github.com/phelber/eurosat (EuroSAT.zip, the RGB version)",
}
EUROSAT_FILES: dict[str, Any] = {"archives": ("EuroSAT.zip", "EuroSAT_RGB.zip", "2750.zip"), "folder": "2750"}
EUROSAT_ZIP = (
    RemoteFile(
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "EuroSAT.zip",
        "md5:c8fa014336c82ac7804f0398fcb19387",
    ),
)
CLEVR: dict[str, Any] = {
    "source": "Johnson et al. 2017",
    "licence": "CC BY 4.0",
    "where": "https://cs.stanford.edu/people/jcjohns/clevr (CLEVR_v1.0.zip)",
}
CLEVR_ZIP = (
    RemoteFile(
        "https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip",
        "CLEVR_v1.0.zip",
        "md5:b11922020e72d0cd9154779b2d3d07d2",
    ),
)
DSPRITES_NPZ = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
DSPRITES: dict[str, Any] = {
    "source": "Matthey et al. 2017",
    "licence": "Apache 2.0",
    "where": f"https://github.com/google-deepmind/dsprites-dataset ({DSPRITES_NPZ})",
}
DSPRITES_FILE = (
    RemoteFile(f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{DSPRITES_NPZ}", DSPRITES_NPZ),
)
NORB: dict[str, Any] = {
    "source": "LeCun et al. 2004",
    "licence": "research use",
    "where": "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small (the six smallnorb-*.mat.gz)",
}
NORB_SETS = ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing")
NORB_FILES = tuple(
    RemoteFile(f"https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/{name}-{part}.mat.gz", f"{name}-{part}.mat.gz")
    for name in NORB_SETS
    for part in ("dat", "cat", "info")
)
PCAM = "camelyonpatch_level_2_split"
PCAM_FILES = tuple(
    RemoteFile(f"gdrive://{key}", f"{PCAM}_{part}.h5.gz", f"md5:{digest}")
    for part, key, digest in (
        ("train_x", "1Ka0XfEMiwgCYPdTI-vv6eUElOBnKFKQ2", "1571f514728f59376b705fc836ff4b63"),
        ("train_y", "1269yhu3pZDP8UYFQs-NYs3FPwuK-nGSG", "35c2d7259d906cfc8143347bb8e05be7"),
        ("test_x", "1qV65ZqZvWzuIVthK8eVDhIwrbnsJdbg_", "d8c2d60d490dbd479f8199bdfa0cf6ec"),
        ("test_y", "17BHrSrwWKjYsOgTMmoqrIjDy6Fa2o_gP", "60a7035772fbdb7f34eb86d4420cf66a"),
        ("valid_x", "1hgshYGWK8V-eGRy8LToWJJgDU_rXWVJ3", "d5b63470df7cfa627aeec8b9dc0c066e"),
        ("valid_y", "1bH8ZRbhSVAhScTS0p9-ZzGnX91cHT3uO", "2b85f58b927af9964a4c15b8f7e8f179"),
    )
)
TRAIN_AND_VAL = SliceRule(val_part="val", val_from=0.0)
LOSSLESS: dict[str, Literal["lossless"]] = {"encoding": "lossless"}

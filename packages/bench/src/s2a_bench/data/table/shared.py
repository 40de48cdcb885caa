"""Values that several rows of the table of datasets share: makers, downloads, digests, constructors of rows.

Digests of downloads are those that torchvision 0.29 or tensorflow_datasets 4.9.10 states; that of dSprites is stated,
alike, by a dozen public loaders of it.
"""

from __future__ import annotations

import dataclasses
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


def scene_task(name: str, classes: int) -> Dataset:
    """A task of suite ``real`` that is rendered at the backbone's resolution."""
    return Dataset(
        f"scene_{name}",
        "real",
        STRUCTURED,
        classes,
        make_counts(800, 200, 2000),
        "rendered by this package from a fixed seed",
        "this package's",
        "nothing to download",
        aliases=(name,),
        embedded=True,
        synthetic=True,
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


_DOMAINNET_DIGESTS = {
    "clipart": (
        "f8f248a3e8bbc9868c523ae24e6601b4c2ad102afc60c0efeb4f3255df22354d",
        "affdadf5f95a7583e6b98030a3d35007e2613ee4dd942393c5a705ec2b429312",
        "62c8e36aaba1c41ad9e249099739707220a44c08f167b37ef420f34a31628a6b",
    ),
    "infograph": (
        "891e14f476317e97b6f06d6498c11d0a5b8d0c8b57210765ed9beb072da611fa",
        "36b44cbd41a2915e0dc73b4f4be8862a6f3c220f93c8d63fb2439beeae3aefda",
        "413cfa54ac92e7e6b242f4f09fbd9c8ace85c4deaf3cb6c81ff6b68264460136",
    ),
    "painting": (
        "fa47e6d405503ea0286cabd767f176bd30e988b63ddd7b9db16cf030c9770015",
        "f1da38d50a702fddf1329f85bc607d7a2abcae7e6aec75e1fd49cc1bd340d47b",
        "11472b13b5188e09f06918b12eebb660588c97a20e43e268d9b02e3e37eb8f97",
    ),
    "quickdraw": (
        "9f37df2a8c3733703dbb35ad9964202a65f675ca30137756457537536b485d84",
        "3a5edd3bc215772010eebc87f158707703dd7e48091d13b816af81326a9d1c0f",
        "2a00a60650a453c65c356da748fec54084a197272137c440e7d52d08947357bf",
    ),
    "real": (
        "d7fe010b430c5b510f85d657d38c4a1924822695fabea4fef57bd00dba251d63",
        "19d483256d24aef19e581b65eda8333fd918aef3eb733fe499ff384120e3a289",
        "2b3f75bcde309aeb5931292084b2162e936b5f189e3bb1ad716f0f74c460864c",
    ),
    "sketch": (
        "23a7dbae7016b343e934399beaa8a68728fb5e570ebe2c71df9b75cf91c499fc",
        "72f4bc6afa5702a1ccba800d0053c1427de87439dfaf246dbc9a2e71abfec54f",
        "3fb48fca18c507c4321f007c3f62b308ec232ff6928cbfe2af64e76ec366e840",
    ),
}
"""Domain -> sha256 of the images, of the training list and of the test list."""


def domainnet_dataset(name: str, train: int, test: int) -> Dataset:
    """One of DomainNet's domains (the cleaned lists); a tenth of each class's training images is held out."""
    preparation = Preparation("domainnet", OfficialRule(), (f"{name}.zip",), target=name, in_place=True)
    address = "https://csr.bu.edu/ftp/visda/2019/multi-source"
    images, train_list, test_list = (f"sha256:{digest}" for digest in _DOMAINNET_DIGESTS[name])
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
            RemoteFile(f"{address}/{ground}{name}.zip", f"{name}.zip", images),
            RemoteFile(f"{address}/domainnet/txt/{name}_train.txt", f"{name}_train.txt", train_list),
            RemoteFile(f"{address}/domainnet/txt/{name}_test.txt", f"{name}_test.txt", test_list),
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


def cifar10_sample() -> Dataset:
    """CIFAR-10 with VTAB-1k's number of training images, drawn by hash, and its whole test part."""
    whole = cifar_dataset("cifar10", 10, CIFAR10_DIGEST)
    assert whole.preparation is not None
    return dataclasses.replace(
        whole,
        name="cifar10_1k",
        suite="real",
        group=NATURAL,
        counts=make_counts(800, 200, 10000),
        preparation=dataclasses.replace(whole.preparation, rule=SliceRule()),
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
CIFAR10_DIGEST = "c58f30108f718f92721af3b95e74349a"
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
    RemoteFile(
        f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{DSPRITES_NPZ}",
        DSPRITES_NPZ,
        "md5:7da33b31b13a06f4b04a70402ce90c2e",
    ),
)
NORB: dict[str, Any] = {
    "source": "LeCun et al. 2004",
    "licence": "research use",
    "where": "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small (the six smallnorb-*.mat.gz)",
}
_NORB_TRAIN, _NORB_TEST = "smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing"
NORB_FILES = tuple(
    RemoteFile(f"https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/{name}.mat.gz", f"{name}.mat.gz", f"sha256:{digest}")
    for name, digest in (
        (f"{_NORB_TRAIN}-dat", "5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873"),
        (f"{_NORB_TRAIN}-cat", "2784e542c1922060691090952b6cd6278879a216c90f81476f0f00256d42cdaa"),
        (f"{_NORB_TRAIN}-info", "de7eb932ebe7a4ee16217fead60660d0eb3d23632c2f4d1c51f88c501c17bf32"),
        (f"{_NORB_TEST}-dat", "cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474"),
        (f"{_NORB_TEST}-cat", "ecaf6d5bb8c3bc5eab9cf0258f6d2198dd474e016e374836fc097f2e5ff509ff"),
        (f"{_NORB_TEST}-info", "16adf314226327ee006d1a44db8cfef52773c06c829951d5653a9f6f310248a2"),
    )
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

"""THE table of datasets. Adding a dataset is adding one entry here, and nothing else.

``vtab``: classes and counts are those of the VTAB-1k protocol (Zhai et al., arXiv 1910.04867, and its code
``google-research/task_adaptation``). ``fgvc``: the S2A paper's eight sets (section 4.1); it states no splits, so they
are VPT's where VPT has them (CUB, Flowers, Dogs) and CoOp's elsewhere. The class count always comes from here: some
classes of a test list are absent from 1,000 training images. Digests of downloads are those torchvision 0.29 states.
"""

from __future__ import annotations

from typing import Any, Literal

from s2a_bench.dataset_types import Counts, Dataset, Fractions, Official, Pool, Recipe, Remote, Slices, counts

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

_NAT, _SPEC, _STR, _FINE = "natural", "specialized", "structured", "fine-grained"
_UNKNOWN = "none known"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"


def _mini(name: str, group: str, classes: int, test: int, synthetic: bool = True) -> Dataset:
    source = "rendered by this package from a fixed seed" if synthetic else "UCI handwritten digits, by scikit-learn"
    licence = "this package's" if synthetic else "CC BY 4.0 (UCI)"
    sizes = counts(800, 200, test)
    return Dataset(
        name, "mini", group, classes, sizes, source, licence, "nothing to download", embedded=True, synthetic=synthetic
    )


def _vtab(
    name: str, group: str, classes: int, test: int, source: str, licence: str, where: str, recipe: Recipe, **more: Any
) -> Dataset:
    return Dataset(name, "vtab", group, classes, counts(800, 200, test), source, licence, where, recipe=recipe, **more)


def _fgvc(
    name: str, classes: int, sizes: Counts, source: str, licence: str, where: str, recipe: Recipe, **more: Any
) -> Dataset:
    return Dataset(name, "fgvc", _FINE, classes, sizes, source, licence, where, recipe=recipe, **more)


def _domain(name: str, train: int, test: int) -> Dataset:
    """One of DomainNet's domains (the cleaned lists); a tenth of each class's training images is held out."""
    recipe = Recipe("domainnet", Official(), (f"{name}.zip",), target=name, in_place=True)
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
        recipe=recipe,
        remotes=(
            Remote(f"{address}/{ground}{name}.zip", f"{name}.zip"),
            Remote(f"{address}/domainnet/txts/{name}_train.txt", f"{name}_train.txt"),
            Remote(f"{address}/domainnet/txts/{name}_test.txt", f"{name}_test.txt"),
        ),
    )


def _cifar(name: str, classes: int, digest: str) -> Dataset:
    archive = f"cifar-{classes}-python.tar.gz"
    rest = "the archive, or class folders {train,test}/CLASS/*"
    return Dataset(
        name,
        "cifar",
        "whole",
        classes,
        counts(45000, 5000, 10000),
        "Krizhevsky 2009",
        _UNKNOWN,
        f"https://www.cs.toronto.edu/~kriz/cifar.html ({archive}; {rest})",
        encoding="lossless",
        recipe=Recipe("cifar", Official(0.1), (archive, f"{name}_images.tar.gz"), target="fine"),
        remotes=(Remote(f"https://www.cs.toronto.edu/~kriz/{archive}", archive, f"md5:{digest}"),),
    )


_CALTECH = {
    "source": "Li, Andreeto, Ranzato and Perona 2003",
    "licence": "CC BY 4.0",
    "where": "https://data.caltech.edu/records/mzrjq-6wc02 (caltech-101.zip)",
}
_CALTECH_FILES: dict[str, Any] = {
    "archives": ("caltech-101.zip", "101_ObjectCategories.tar.gz"),
    "folder": "101_ObjectCategories",
}
_CALTECH_ZIP = (
    Remote(
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        "caltech-101.zip",
        "md5:3138e1922a9193bfa496528edbbc45d0",
    ),
)
_CIFAR100_DIGEST = "eb9058c3a382ffc7106e4002c42a8d85"
_DTD = {"source": "Cimpoi et al. 2014", "licence": "research use", "where": f"{_OXFORD}/dtd (dtd-r1.0.1.tar.gz)"}
_DTD_FILE = (
    Remote(f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz", "dtd-r1.0.1.tar.gz", "md5:fff73e5086ae6bdbea199a49dfb8a4c1"),
)
_FLOWERS = {
    "source": "Nilsback and Zisserman 2008",
    "licence": _UNKNOWN,
    "where": f"{_OXFORD}/flowers/102 (102flowers.tgz, imagelabels.mat, setid.mat)",
}
_FLOWERS_FILES = (
    Remote(f"{_OXFORD}/flowers/102/102flowers.tgz", "102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa"),
    Remote(f"{_OXFORD}/flowers/102/imagelabels.mat", "imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d"),
    Remote(f"{_OXFORD}/flowers/102/setid.mat", "setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c"),
)
_PETS = {
    "source": "Parkhi et al. 2012",
    "licence": "CC BY-SA 4.0",
    "where": f"{_OXFORD}/pets (images.tar.gz, annotations.tar.gz)",
}
_PETS_FILES = (
    Remote(f"{_OXFORD}/pets/data/images.tar.gz", "images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
    Remote(f"{_OXFORD}/pets/data/annotations.tar.gz", "annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
)
_EUROSAT = {
    "source": "Helber et al. 2019",
    "licence": "MIT",
    "where": "https://github.com/phelber/eurosat (EuroSAT.zip, the RGB version)",
}
_EUROSAT_FILES: dict[str, Any] = {"archives": ("EuroSAT.zip", "EuroSAT_RGB.zip", "2750.zip"), "folder": "2750"}
_EUROSAT_ZIP = (
    Remote(
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "EuroSAT.zip",
        "md5:c8fa014336c82ac7804f0398fcb19387",
    ),
)
_CLEVR: dict[str, Any] = {
    "source": "Johnson et al. 2017",
    "licence": "CC BY 4.0",
    "where": "https://cs.stanford.edu/people/jcjohns/clevr (CLEVR_v1.0.zip)",
}
_CLEVR_ZIP = (
    Remote(
        "https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip",
        "CLEVR_v1.0.zip",
        "md5:b11922020e72d0cd9154779b2d3d07d2",
    ),
)
_DSPRITES_NPZ = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_DSPRITES: dict[str, Any] = {
    "source": "Matthey et al. 2017",
    "licence": "Apache 2.0",
    "where": f"https://github.com/google-deepmind/dsprites-dataset ({_DSPRITES_NPZ})",
}
_DSPRITES_FILE = (
    Remote(f"https://github.com/google-deepmind/dsprites-dataset/raw/master/{_DSPRITES_NPZ}", _DSPRITES_NPZ),
)
_NORB: dict[str, Any] = {
    "source": "LeCun et al. 2004",
    "licence": "research use",
    "where": "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small (the six smallnorb-*.mat.gz)",
}
_NORB_SETS = ("smallnorb-5x46789x9x18x6x2x96x96-training", "smallnorb-5x01235x9x18x6x2x96x96-testing")
_NORB_FILES = tuple(
    Remote(f"https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/{name}-{part}.mat.gz", f"{name}-{part}.mat.gz")
    for name in _NORB_SETS
    for part in ("dat", "cat", "info")
)
_PCAM = "camelyonpatch_level_2_split"
_PCAM_FILES = tuple(
    Remote(f"gdrive://{key}", f"{_PCAM}_{part}.h5.gz", f"md5:{digest}")
    for part, key, digest in (
        ("train_x", "1Ka0XfEMiwgCYPdTI-vv6eUElOBnKFKQ2", "1571f514728f59376b705fc836ff4b63"),
        ("train_y", "1269yhu3pZDP8UYFQs-NYs3FPwuK-nGSG", "35c2d7259d906cfc8143347bb8e05be7"),
        ("test_x", "1qV65ZqZvWzuIVthK8eVDhIwrbnsJdbg_", "d8c2d60d490dbd479f8199bdfa0cf6ec"),
        ("test_y", "17BHrSrwWKjYsOgTMmoqrIjDy6Fa2o_gP", "60a7035772fbdb7f34eb86d4420cf66a"),
        ("valid_x", "1hgshYGWK8V-eGRy8LToWJJgDU_rXWVJ3", "d5b63470df7cfa627aeec8b9dc0c066e"),
        ("valid_y", "1bH8ZRbhSVAhScTS0p9-ZzGnX91cHT3uO", "2b85f58b927af9964a4c15b8f7e8f179"),
    )
)
_TRAIN_AND_VAL = Slices(val_part="val", val_from=0.0)
_LOSSLESS: dict[str, Literal["lossless"]] = {"encoding": "lossless"}

_MINI = (
    _mini("digits", _NAT, 10, 797, synthetic=False),
    _mini("textures", _SPEC, 8, 2000),
    _mini("orientation", _STR, 16, 2000),
    _mini("location", _STR, 16, 2000),
    _mini("count", _STR, 8, 2000),
)

_VTAB = (
    _vtab(
        "cifar",
        _NAT,
        100,
        10000,
        "Krizhevsky 2009",
        _UNKNOWN,
        "https://www.cs.toronto.edu/~kriz/cifar.html (cifar-100-python.tar.gz)",
        Recipe("cifar", Slices(), ("cifar-100-python.tar.gz",), target="fine"),
        aliases=("cifar100", "cifar_100"),
        remotes=(
            Remote(
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                "cifar-100-python.tar.gz",
                f"md5:{_CIFAR100_DIGEST}",
            ),
        ),
        **_LOSSLESS,
    ),
    _vtab(
        "caltech101",
        _NAT,
        102,
        6084,
        recipe=Recipe("class_folders", Pool(), class_names=_CALTECH101_CLASSES, **_CALTECH_FILES),
        aliases=("caltech_101", "caltech-101"),
        remotes=_CALTECH_ZIP,
        **_CALTECH,
    ),
    _vtab(
        "dtd",
        _NAT,
        47,
        1880,
        recipe=Recipe("dtd", _TRAIN_AND_VAL, ("dtd-r1.0.1.tar.gz",)),
        remotes=_DTD_FILE,
        **_DTD,
    ),
    _vtab(
        "oxford_flowers102",
        _NAT,
        102,
        6149,
        recipe=Recipe("flowers102", _TRAIN_AND_VAL, ("102flowers.tgz",)),
        aliases=("flowers102", "flowers"),
        remotes=_FLOWERS_FILES,
        **_FLOWERS,
    ),
    _vtab(
        "oxford_iiit_pet",
        _NAT,
        37,
        3669,
        recipe=Recipe("pets", Slices(val_from=0.8), ("images.tar.gz", "annotations.tar.gz")),
        aliases=("oxford_pet", "pets", "pet"),
        remotes=_PETS_FILES,
        **_PETS,
    ),
    _vtab(
        "svhn",
        _NAT,
        10,
        26032,
        "Netzer et al. 2011",
        "non-commercial use",
        "http://ufldl.stanford.edu/housenumbers (train_32x32.mat, test_32x32.mat)",
        Recipe("svhn", Slices(), ()),
        aliases=("svhn_cropped",),
        remotes=(
            Remote(
                "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                "train_32x32.mat",
                "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
            ),
            Remote(
                "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
                "test_32x32.mat",
                "md5:eb5a983be6a315427106f1b164d9cef3",
            ),
        ),
        **_LOSSLESS,
    ),
    _vtab(
        "sun397",
        _NAT,
        397,
        21750,
        "Xiao et al. 2010",
        "research use",
        "https://vision.princeton.edu/projects/2010/SUN (SUN397.tar.gz)",
        Recipe("sun397", _TRAIN_AND_VAL, ("SUN397.tar.gz",)),
        aliases=("sun",),
        remotes=(
            Remote(
                "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                "SUN397.tar.gz",
                "md5:8ca2778205c41d23104230ba66911c7a",
            ),
        ),
    ),
    _vtab(
        "patch_camelyon",
        _SPEC,
        2,
        32768,
        "Veeling et al. 2018",
        "CC0",
        f"https://github.com/basveeling/pcam (six {_PCAM}_*.h5.gz)",
        Recipe("patch_camelyon", _TRAIN_AND_VAL, ()),
        aliases=("camelyon", "pcam"),
        remotes=_PCAM_FILES,
        **_LOSSLESS,
    ),
    _vtab(
        "eurosat",
        _SPEC,
        10,
        5400,
        recipe=Recipe("class_folders", Slices(val_from=0.6, test_part="train", test_from=0.8), **_EUROSAT_FILES),
        aliases=("euro_sat",),
        remotes=_EUROSAT_ZIP,
        **_EUROSAT,
    ),
    _vtab(
        "resisc45",
        _SPEC,
        45,
        6300,
        "Cheng et al. 2017",
        "research use",
        "https://gcheng-nwpu.github.io (NWPU-RESISC45.rar; extract it)",
        Recipe(
            "class_folders",
            Slices(val_from=0.6, test_part="train", test_from=0.8),
            ("NWPU-RESISC45.zip", "NWPU-RESISC45.tar.gz"),
            folder="NWPU-RESISC45",
        ),
        aliases=("resisc",),
    ),
    _vtab(
        "diabetic_retinopathy",
        _SPEC,
        5,
        42670,
        "Kaggle and EyePACS 2015",
        "Kaggle competition rules",
        "https://www.kaggle.com/c/diabetic-retinopathy-detection (train/, test/, trainLabels.csv, "
        "retinopathy_solution.csv)",
        Recipe("retinopathy", _TRAIN_AND_VAL, ("train.zip", "test.zip")),
        aliases=("diabetic_retinopathy_detection", "retinopathy"),
    ),
    _vtab(
        "clevr_count",
        _STR,
        8,
        15000,
        recipe=Recipe("clevr", Slices(), ("CLEVR_v1.0.zip",), target="count"),
        remotes=_CLEVR_ZIP,
        **_CLEVR,
        **_LOSSLESS,
    ),
    _vtab(
        "clevr_dist",
        _STR,
        6,
        15000,
        recipe=Recipe("clevr", Slices(), ("CLEVR_v1.0.zip",), target="distance"),
        aliases=("clevr_distance",),
        remotes=_CLEVR_ZIP,
        **_CLEVR,
        **_LOSSLESS,
    ),
    _vtab(
        "dmlab",
        _STR,
        6,
        22735,
        "Zhai et al. 2019, frames of DeepMind Lab",
        _UNKNOWN,
        "tensorflow_datasets (dmlab:2, an exported directory)",
        Recipe("tfds", _TRAIN_AND_VAL, ()),
    ),
    _vtab(
        "kitti",
        _STR,
        4,
        711,
        "Geiger et al. 2013",
        "CC BY-NC-SA 3.0",
        "tensorflow_datasets (kitti:3, an exported directory)",
        Recipe("tfds", _TRAIN_AND_VAL, ()),
        aliases=("kitti_distance",),
        **_LOSSLESS,
    ),
    _vtab(
        "dsprites_loc",
        _STR,
        16,
        73728,
        recipe=Recipe("dsprites", Slices(val_from=0.8, test_part="train", test_from=0.9), (), target="x_position"),
        aliases=("dsprites_location",),
        remotes=_DSPRITES_FILE,
        **_DSPRITES,
        **_LOSSLESS,
    ),
    _vtab(
        "dsprites_ori",
        _STR,
        16,
        73728,
        recipe=Recipe("dsprites", Slices(val_from=0.8, test_part="train", test_from=0.9), (), target="orientation"),
        aliases=("dsprites_orientation",),
        remotes=_DSPRITES_FILE,
        **_DSPRITES,
        **_LOSSLESS,
    ),
    _vtab(
        "smallnorb_azi",
        _STR,
        18,
        12150,
        recipe=Recipe("smallnorb", Slices(val_part="test", val_from=0.0, test_from=0.5), (), target="azimuth"),
        aliases=("smallnorb_azimuth",),
        remotes=_NORB_FILES,
        **_NORB,
        **_LOSSLESS,
    ),
    _vtab(
        "smallnorb_ele",
        _STR,
        9,
        12150,
        recipe=Recipe("smallnorb", Slices(val_part="test", val_from=0.0, test_from=0.5), (), target="elevation"),
        aliases=("smallnorb_elevation",),
        remotes=_NORB_FILES,
        **_NORB,
        **_LOSSLESS,
    ),
)

_FGVC = (
    _fgvc(
        "fgvc_cub",
        200,
        counts(5394, 600, 5794),
        "Wah et al. 2011",
        "non-commercial research",
        "https://www.vision.caltech.edu/datasets/cub_200_2011 (CUB_200_2011.tgz)",
        Recipe("cub", Official(0.1), ("CUB_200_2011.tgz",), splits="vpt"),
        aliases=("cub", "cub200", "cub_200_2011"),
        remotes=(
            Remote(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "CUB_200_2011.tgz",
                "md5:97eceeb196236b17998738112f37df78",
            ),
        ),
    ),
    _fgvc(
        "fgvc_flowers",
        102,
        counts(1020, 1020, 6149),
        recipe=Recipe("flowers102", Official(), ("102flowers.tgz",), splits="vpt"),
        aliases=("flowers", "oxford_flowers", "flowers102"),
        remotes=_FLOWERS_FILES,
        **_FLOWERS,
    ),
    _fgvc(
        "fgvc_dogs",
        120,
        counts(10800, 1200, 8580),
        "Khosla et al. 2011",
        "non-commercial research",
        "http://vision.stanford.edu/aditya86/ImageNetDogs (images.tar, lists.tar)",
        Recipe("dogs", Official(0.1), ("images.tar", "lists.tar"), splits="vpt"),
        aliases=("dogs", "stanford_dogs"),
        remotes=(
            Remote("http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar", "images.tar"),
            Remote("http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar", "lists.tar"),
        ),
    ),
    _fgvc(
        "fgvc_caltech101",
        100,
        counts(4128, 1649, 2465),
        recipe=Recipe(
            "class_folders",
            Fractions(),
            class_names=tuple(n for n in _CALTECH101_CLASSES if n not in ("background_google", "faces_easy")),
            skip=("BACKGROUND_Google", "Faces_easy"),
            splits="coop",
            **_CALTECH_FILES,
        ),
        aliases=("caltech101", "caltech"),
        remotes=_CALTECH_ZIP,
        **_CALTECH,
    ),
    _fgvc(
        "fgvc_caltech101_all",
        101,
        counts(4346, 1736, 2595),
        recipe=Recipe(
            "class_folders",
            Fractions(),
            class_names=tuple(n for n in _CALTECH101_CLASSES if n != "background_google"),
            skip=("BACKGROUND_Google",),
            **_CALTECH_FILES,
        ),
        aliases=("caltech101_all",),
        remotes=_CALTECH_ZIP,
        **_CALTECH,
    ),
    _fgvc(
        "fgvc_dtd",
        47,
        counts(2820, 1128, 1692),
        recipe=Recipe("dtd", Fractions(), ("dtd-r1.0.1.tar.gz",), splits="coop"),
        aliases=("dtd",),
        remotes=_DTD_FILE,
        **_DTD,
    ),
    _fgvc(
        "fgvc_eurosat",
        10,
        counts(13500, 5400, 8100),
        recipe=Recipe("class_folders", Fractions(), splits="coop", **_EUROSAT_FILES),
        aliases=("eurosat",),
        remotes=_EUROSAT_ZIP,
        **_EUROSAT,
    ),
    _fgvc(
        "fgvc_pets",
        37,
        counts(2944, 736, 3669),
        recipe=Recipe("pets", Official(0.2), ("images.tar.gz", "annotations.tar.gz"), splits="coop"),
        aliases=("pets", "oxford_pets", "oxford_iiit_pet"),
        remotes=_PETS_FILES,
        **_PETS,
    ),
    _fgvc(
        "fgvc_ucf101",
        101,
        counts(7639, 1898, 3783),
        "Soomro et al. 2012, middle frames by CoOp",
        "research use",
        "CoOp's DATASETS.md (UCF-101-midframes.zip)",
        Recipe("ucf101", Official(0.2), ("UCF-101-midframes.zip",), splits="coop"),
        aliases=("ucf101", "ucf"),
    ),
)

_WHOLE = (
    _cifar("cifar10", 10, "c58f30108f718f92721af3b95e74349a"),
    _cifar("cifar100", 100, _CIFAR100_DIGEST),
    _domain("clipart", 33525, 14604),
    _domain("infograph", 36023, 15582),
    _domain("painting", 50416, 21850),
    _domain("quickdraw", 120750, 51750),
    _domain("real", 120906, 52041),
    _domain("sketch", 48212, 20916),
    Dataset(
        "imagenet1k",
        "imagenet",
        "whole",
        1000,
        Counts(None, None, 1281167, 50000),
        "Russakovsky et al. 2015",
        "non-commercial research",
        "https://image-net.org (train/<wnid>/*.JPEG and val/<wnid>/*.JPEG)",
        ("imagenet", "ilsvrc2012"),
        recipe=Recipe("image_folder", Official(0.01), (), target="imagenet", in_place=True),
    ),
)

TABLE: tuple[Dataset, ...] = (*_MINI, *_VTAB, *_FGVC, *_WHOLE)

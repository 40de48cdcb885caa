"""Rows of the suite ``fgvc``: the S2A paper's eight sets (section 4.1), and Caltech-101 with every class of objects.

The paper states no splits, so they are VPT's where VPT has them (CUB, Flowers, Dogs) and CoOp's elsewhere.
"""

from __future__ import annotations

from s2a_bench.data.table.shared import (
    CALTECH,
    CALTECH101_CLASSES,
    CALTECH_FILES,
    CALTECH_ZIP,
    DTD,
    DTD_FILE,
    EUROSAT,
    EUROSAT_FILES,
    EUROSAT_ZIP,
    FLOWERS,
    FLOWERS_FILES,
    PETS,
    PETS_FILES,
    fgvc_dataset,
)
from s2a_bench.data.table.types import FractionRule, OfficialRule, Preparation, RemoteFile, make_counts

FGVC = (
    fgvc_dataset(
        "fgvc_cub",
        200,
        make_counts(5394, 600, 5794),
        "Wah et al. 2011",
        "non-commercial research",
        "https://www.vision.caltech.edu/datasets/cub_200_2011 (CUB_200_2011.tgz)",
        Preparation("cub", OfficialRule(0.1), ("CUB_200_2011.tgz",), splits="vpt"),
        aliases=("cub", "cub200", "cub_200_2011"),
        remotes=(
            RemoteFile(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "CUB_200_2011.tgz",
                "md5:97eceeb196236b17998738112f37df78",
            ),
        ),
    ),
    fgvc_dataset(
        "fgvc_flowers",
        102,
        make_counts(1020, 1020, 6149),
        preparation=Preparation("flowers102", OfficialRule(), ("102flowers.tgz",), splits="vpt"),
        aliases=("flowers", "oxford_flowers", "flowers102"),
        remotes=FLOWERS_FILES,
        **FLOWERS,
    ),
    fgvc_dataset(
        "fgvc_dogs",
        120,
        make_counts(10800, 1200, 8580),
        "Khosla et al. 2011",
        "non-commercial research",
        "https://vision.stanford.edu/aditya86/ImageNetDogs (images.tar, lists.tar)",
        Preparation("dogs", OfficialRule(0.1), ("images.tar", "lists.tar"), splits="vpt"),
        aliases=("dogs", "stanford_dogs"),
        remotes=(
            RemoteFile(
                "https://vision.stanford.edu/aditya86/ImageNetDogs/images.tar",
                "images.tar",
                "sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            ),
            RemoteFile(
                "https://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar",
                "lists.tar",
                "sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            ),
        ),
    ),
    fgvc_dataset(
        "fgvc_caltech101",
        100,
        make_counts(4128, 1649, 2465),
        preparation=Preparation(
            "class_folders",
            FractionRule(),
            class_names=tuple(n for n in CALTECH101_CLASSES if n not in ("background_google", "faces_easy")),
            skip=("BACKGROUND_Google", "Faces_easy"),
            splits="coop",
            **CALTECH_FILES,
        ),
        aliases=("caltech101", "caltech"),
        remotes=CALTECH_ZIP,
        **CALTECH,
    ),
    fgvc_dataset(
        "fgvc_caltech101_all",
        101,
        make_counts(4346, 1736, 2595),
        preparation=Preparation(
            "class_folders",
            FractionRule(),
            class_names=tuple(n for n in CALTECH101_CLASSES if n != "background_google"),
            skip=("BACKGROUND_Google",),
            **CALTECH_FILES,
        ),
        aliases=("caltech101_all",),
        remotes=CALTECH_ZIP,
        **CALTECH,
    ),
    fgvc_dataset(
        "fgvc_dtd",
        47,
        make_counts(2820, 1128, 1692),
        preparation=Preparation("dtd", FractionRule(), ("dtd-r1.0.1.tar.gz",), splits="coop"),
        aliases=("dtd",),
        remotes=DTD_FILE,
        **DTD,
    ),
    fgvc_dataset(
        "fgvc_eurosat",
        10,
        make_counts(13500, 5400, 8100),
        preparation=Preparation("class_folders", FractionRule(), splits="coop", **EUROSAT_FILES),
        aliases=("eurosat",),
        remotes=EUROSAT_ZIP,
        **EUROSAT,
    ),
    fgvc_dataset(
        "fgvc_pets",
        37,
        make_counts(2944, 736, 3669),
        preparation=Preparation("pets", OfficialRule(0.2), ("images.tar.gz", "annotations.tar.gz"), splits="coop"),
        aliases=("pets", "oxford_pets", "oxford_iiit_pet"),
        remotes=PETS_FILES,
        **PETS,
    ),
    fgvc_dataset(
        "fgvc_ucf101",
        101,
        make_counts(7639, 1898, 3783),
        "Soomro et al. 2012, middle frames by CoOp",
        "research use",
        "CoOp's DATASETS.md (UCF-101-midframes.zip)",
        Preparation("ucf101", OfficialRule(0.2), ("UCF-101-midframes.zip",), splits="coop"),
        aliases=("ucf101", "ucf"),
    ),
)

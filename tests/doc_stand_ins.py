"""What stands for the large things of the pages, and what lies in the folder where a page runs."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from bench.own_folders import picture
from bench.small_caltech import FOLDER, source_files

NOT_RUN = {
    "pip install": "installs from the network",
    "nox -s tests": "this is the session that runs the tests",
    "nox -s lint": "what CI runs",
    "nox -s bare": "what CI runs",
    "nox -s lowest": "installs the oldest versions from the network",
    "nox -s benchmarks": "minutes of timing",
    "nox -s docs": "installs from the network; CI builds the site",
    "ray start": "starts a cluster; tests/bench/test_cluster.py does",
    "--ray-address": "needs that cluster; tests/bench/test_cluster.py has one",
    "half_precision.py": "needs a pretrained ViT-S/14 and images",
    "prepare cifar10_1k": "needs CIFAR-10; tests/bench/test_source_arrays.py reads its formats",
    "memory --paper": "22 full-size rows, minutes; tests/bench/test_paper.py",
}
"""Part of a command -> why no test here runs it."""

STAND_INS = [
    # Those of photographs need their archives.
    (r"--suite real(.*) --data-dir DATA", r"--suite real --datasets scene_count\1"),
    (r"--limit-test 1000", "--limit-train 32 --limit-test 32 --epochs 1"),
    (r"(--backbones )vit_\S+ --weights", r"\1test_vit --weights"),
    (r"--weights FILE", "--weights test_vit.safetensors"),
    (r"--image-size 56", "--image-size 48"),  # Its patches have 16 pixels.
    (r"(finetune .*--backbone )vit_\S+", r"\1mini_swin"),  # Another than without the option.
    (r"vit_\w+_patch1[46]_\w+(\.\w+)?", "mini_vit"),
    (r"swin_base_\w+", "mini_swin"),
    (r"convnext_base", "mini_convnext"),
    (r"(finetune .*--memory-budget )8GiB", r"\g<1>6MB"),  # Less than the default batch takes.
    (r"\b(8|12|24)GiB", "64MB"),
    (r"^(s2a-bench fits --budget \S+)$", r"\1 --backbone mini_vit --method s2a lora"),
    (r"^s2a-bench estimate$", "s2a-bench estimate --backbones mini_vit --methods linear s2a --seeds 0 --seconds 0.1"),
    (r"--epochs \d+", "--epochs 1"),
    (r"--seeds [\d ]+", "--seeds 0 "),
    (r"--datasets digits textures [a-z ]+", "--datasets digits "),
    (r"^nox -s bench --", "s2a-bench sweep"),
    (r"^nox -s bench$", "s2a-bench sweep --datasets digits --methods linear s2a"),
    (r"method\.lrp_rank=5,15,30 method\.lsb_reduction=16,8\S*", "method.lrp_rank=5,15 method.lsb_reduction=8"),
    (r"--method all", "--method s2a lora"),
    (r"^s2a-bench ui$", "s2a-bench ui --no-browser --port PORT"),
    (r"^(mlflow models serve .*)--port 5001", r"\1--port PORT"),
    (r"^curl localhost:5001", "curl -sSf localhost:PORT"),
    (r"^(s2a-bench serve .*)$", r"\1 --port PORT"),
    (r"^(curl -sS) (.*localhost:)8000", r"\1f \g<2>PORT"),
    (r"^(python examples/serve_client.py .*:)8000", r"\1PORT"),
]
"""What stands for the large things of the pages, in this order; PORT is a free port."""

SERVERS = ("s2a-bench ui", "s2a-bench serve", "mlflow models serve")
"""Commands that run until Ctrl-C."""

PYTHON_STAND_INS = [
    (r"timm\.create_model\([^()]*\)", "backbone()"),
    (r"vit_\w+_patch1[46]_\w+(\.\w+)?", "test_vit"),
    (r"range\(600\)", "range(120)"),  # Images of the tutorial.
    (r"(s2a_bench\.sweep\(.*)epochs=3", r"\1epochs=1, limit_train=16, limit_test=16"),
]

FIRST = {
    "docs/training.md": "s2a-bench data prepare leaves --from photos --data-dir DATA",
    "docs/mlflow.md": "s2a-bench sweep --datasets digits --methods linear --epochs 1 --limit-train 16 --serial",
    "docs/integrations.md": "s2a-bench data prepare caltech101 --from caltech-101.zip --data-dir DATA",
    "docs/recipes.md": "s2a-bench data prepare caltech101 --from caltech-101.zip --data-dir DATA",
}
"""Page -> a command that its text takes as given."""

BEFORE = {
    "README.md": """
names = [str(i) for i in range(100)]
loader = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))]
""",
    "docs/lean.md": """
model = backbone()
class MySideBlock(torch.nn.Module): pass
class MyTokenBlock(torch.nn.Module): pass
""",
    "docs/fits.md": """
model, config = backbone(), s2a.S2AConfig()
""",
    "docs/export.md": """
import json, s2a_bench
adapted = s2a.from_pretrained("finetuned/adapter")
batch = torch.randn(2, 3, 32, 32)
s2a.export(adapted, "model.pt2", "torch", images=batch)
""",
    "docs/integrations.md": """
import types
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import cross_entropy
backbone = backbone()
self = types.SimpleNamespace()
accelerator = types.SimpleNamespace(is_main_process=True, unwrap_model=lambda model: model)
""",
}
"""Page -> what its blocks find: names that the text around them gives a meaning."""

PREPARE = """
import os, re, sys, warnings
from pathlib import Path
import numpy as np
import s2a, timm, torch
from PIL import Image
from s2a_bench.cells.embedded import mini_vit

torch.set_num_threads(1)


def backbone():
    return mini_vit()
"""
"""Before every Python block."""


def without_install(command: str) -> str:
    """A command without the installation of nox before it, in whose environment tests run already."""
    return command.removeprefix('pip install "nox[uv]" && ')


def not_run(command: str) -> bool:
    """Whether no test here runs a command."""
    return any(part in without_install(command) for part in NOT_RUN)


def shortened(command: str) -> str:
    """A command with the stand-ins in place of what is large."""
    command = without_install(command)
    for pattern, stand_in in STAND_INS:
        command = re.sub(pattern, stand_in, command)
    sweep = command.startswith("s2a-bench sweep")
    if sweep and "--experiment" not in command:
        command += "" if "--datasets" in command or "--suite" in command else " --datasets digits"
        command += "" if "--methods" in command else " --methods linear s2a"
    if "--suite" in command:
        command += "" if "--backbones" in command else " --backbones mini_vit"
        command += "" if "--seeds" in command else " --seeds 0"
    if "--dry-run" in command or not (sweep or command.startswith("s2a-bench finetune")):
        return command
    if sweep:
        few = "--suite own" in command  # The pages' own images are few.
        command += " --serial" if few else " --limit-train 16 --limit-test 16 --serial"
    return command if "--epochs" in command else f"{command} --epochs 1"


def python_of(text: str) -> str:
    """A block with a small backbone in place of timm's."""
    for pattern, stand_in in PYTHON_STAND_INS:
        text = re.sub(pattern, stand_in, text)
    return text


def write_files(folder: Path, page: str) -> None:
    """What a page's commands find: images, tables, an archive and weights where the page names them."""
    names = [f"photos/{name}/{j}.png" for name in ("cat", "dog") for j in range(12)]
    others = [
        "new.jpg",
        "photo.jpg",
        "image.jpg",
        "a.jpg",
        "b.jpg",
        "holiday/1.png",
        "scans/deep/1.png",
        "archive/1.jpg",
    ]
    for i, name in enumerate((*names, *others)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture("dog" in name, i).save(folder / name)
    rows = [f"{name},{name.split('/')[1]}\n" for name in names]
    (folder / "birds.csv").write_text("path,label\n" + "".join(rows))
    (folder / "images.csv").write_text("path\nnew.jpg\n" + names[0] + "\n")
    if "caltech101" in page:
        write_caltech(folder / "caltech-101.zip")
    if "--weights FILE" in page or "google-vit/" in page:
        write_weights(folder)


def write_caltech(path: Path) -> None:
    """As many images of as many classes as the real Caltech101 has, of 8 x 8 pixels."""
    from s2a_bench.data.table.lookup import DATASETS

    row = DATASETS["caltech101"]
    assert row.preparation is not None and row.counts.test is not None
    classes = len(row.preparation.class_names)
    whole, rest = divmod(30 * classes + row.counts.test, classes)
    files = source_files(row.preparation.class_names, [whole + (i < rest) for i in range(classes)])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"caltech-101/{FOLDER}/{name}", content)


def write_weights(folder: Path) -> None:
    """Random weights of timm's ``test_vit``: a file of timm, and a folder of ``transformers``."""
    import timm
    from safetensors.torch import save_file
    from transformers import ViTConfig, ViTForImageClassification

    model: Any = timm.create_model("test_vit")
    save_file(model.state_dict(), folder / "test_vit.safetensors")
    block = model.blocks[0]
    config = ViTConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        image_size=model.patch_embed.img_size[0],
        patch_size=model.patch_embed.patch_size[0],
    )
    ViTForImageClassification(config).save_pretrained(folder / "google-vit")

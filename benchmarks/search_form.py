r"""Compares forms of a method on fresh validation images.

The suites' own validation lists have 200 images, too few to tell forms apart (standard error 3.5 points). Here each
form trains on the suite's 1,000 training images and is scored on images that no list has: of rendered tasks 2,000 with
other seeds, of Caltech101 those of the archive that the lists leave out, 2,060. No image of a test list is scored.
``digits`` and CIFAR-10 are left out.

    python benchmarks/search_form.py OUT.jsonl --backbones mini_vit --tasks textures location --seeds 0 \
        --forms "s2a@0.01" "s2a:update_rank=4,lrp_rank=4@0.01" "lora@0.01"

Trained weights, on tasks of suite ``real``:

    python benchmarks/search_form.py OUT.jsonl --backbones vit_small_patch14_dinov2.lvd142m --weights FILE \
        --image-size 112 --precision bf16 --data-dir DATA --caltech 101_ObjectCategories.tar.gz \
        --tasks caltech101 scene_orientation --epochs 4 --forms "lora@0.001"

A form is a method's label and the learning rate behind ``@`` (the card's without one); ``prompts*0.3`` after another
``@`` is a factor on the rate of parameters in whose names the regular expression ``prompts`` (without ``*``) is found.
``@KEY=NUMBER`` sets another
number of the recipe (``@head_lr=0.01``, ``@warmup_epochs=0``). What OUT.jsonl has is not run again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import re
import tarfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import s2a
import torch
from PIL import Image
from s2a_bench.cells import backbones, recipes, scores, train
from s2a_bench.cells.backbones import DataFormat
from s2a_bench.config import BackboneConfig, DataConfig
from s2a_bench.data.images import resize_arrays
from s2a_bench.data.loading import Images, load_data
from s2a_bench.data.mini import scenes, tasks
from s2a_bench.data.mini.render import add_noise
from s2a_bench.sweeps.settings import parse_method

ARGS = argparse.Namespace()
SCORED = 2000
VALIDATION_SPLIT = 100
"""Seed of the renderer in the place of a list's number; the suite's lists are 0, 1 and 2."""


@functools.cache
def images_of(task: str, form: DataFormat) -> tuple[Images, Images, int]:
    """Training images, validation images and the number of classes."""
    if task not in tasks.RENDERED:
        return images_of_real(task, form)
    classes, render = tasks.RENDERED[task]
    rng = tasks.make_generator(tasks.TASKS.index(task), VALIDATION_SPLIT)
    labels = tasks.draw_labels(rng, SCORED, classes)
    fresh = render(rng, labels), labels

    def load(pixels: np.ndarray, labels: np.ndarray) -> Images:
        sized = resize_arrays(pixels, form.size, form.interpolation)
        return Images(
            torch.from_numpy(np.array(labels)), lambda indices, generator: sized[indices], form.mean, form.std
        )

    return load(*tasks.load_task(task)["train800val200"]), load(*fresh), classes


def images_of_real(task: str, form: DataFormat) -> tuple[Images, Images, int]:
    """The same for Caltech101 and the scenes of suite ``real``."""
    root = None if task in scenes.TASKS else str(ARGS.data_dir)
    config = DataConfig("real", task, root=root)
    data = load_data(config, size=form.size, mean=form.mean, std=form.std, interpolation=form.interpolation)
    pixels, labels = left_out(form) if root else fresh_scenes(task, form.size)
    fresh = Images(torch.from_numpy(labels), lambda indices, generator: pixels[indices], form.mean, form.std)
    return data.train, fresh, data.classes


def fresh_scenes(task: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """2,000 scenes that no list has."""
    classes, draw = tasks.SCENES[task.removeprefix(scenes.PREFIX)]
    seed = 100 + scenes.TASKS.index(task)
    rng = tasks.make_generator(seed, VALIDATION_SPLIT)
    labels = tasks.draw_labels(rng, SCORED, classes)
    scene = draw(rng, labels)
    images = []
    for i in range(SCORED):
        noise = tasks.make_generator(seed, VALIDATION_SPLIT, i)
        images.append(add_noise(noise, scene.paint(np.arange(i, i + 1), size)[0]))
    return np.stack(images), labels


def left_out(form: DataFormat) -> tuple[np.ndarray, np.ndarray]:
    """Images of Caltech101's archive that are in no prepared list: what is left of VTAB's 30 per class."""
    names = json.loads((ARGS.data_dir / "caltech101/manifest.json").read_text())["classes"]
    listed = {hashlib.sha256(p.read_bytes()).hexdigest() for p in ARGS.data_dir.glob("caltech101/images/*/*.jpg")}
    pixels, labels, found = [], [], 0
    with tarfile.open(ARGS.caltech) as archive:
        for member in archive:
            if not member.name.endswith(".jpg"):
                continue
            data = archive.extractfile(member).read()  # type: ignore[union-attr]
            if hashlib.sha256(data).hexdigest() in listed:
                found += 1
                continue
            image = np.array(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
            pixels.append(resize_arrays(image[None], form.size, form.interpolation)[0])
            labels.append(names.index(member.name.split("/")[-2].lower()))
    if found != len(listed):
        raise SystemExit(f"{ARGS.caltech} has {found} of the {len(listed)} listed images as they were prepared.")
    return np.stack(pixels), np.array(labels)


def group_factors(model: Any, config: Any, factors: dict[str, float]) -> list[dict[str, Any]]:
    """The recipe's groups, those whose names have a word with another rate."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[tuple[float, float], list[Any]] = {}
    plain: list[dict[str, Any]] = PLAIN_GROUPS(model, config)
    for group in plain:
        for p in group["params"]:
            factor = next((f for word, f in factors.items() if re.search(word, names[id(p)])), 1.0)
            groups.setdefault((group["peak_lr"] * factor, group["weight_decay"]), []).append(p)
    return [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


PLAIN_GROUPS = train.parameter_groups


KEY = {
    "form": None,
    "backbone": None,
    "task": None,
    "seed": None,
    "epochs": None,
    "precision": "fp32",
    "image_size": None,
    "variant": "",
}
"""What a line of the output stands for, and what lines say that leave it out; without epochs they are the suite's."""


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a line from others."""
    return tuple(record.get(name, usual) for name, usual in KEY.items())


def run(form: str, backbone: str, task: str, seed: int, epochs: int | None) -> dict[str, Any]:
    """Trains one form once."""
    label, *rest = form.split("@")
    overrides: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    factors: dict[str, float] = {}
    for part in rest:
        word, star, factor = part.partition("*")
        if star:
            factors[word] = float(factor)
        elif "=" in part:
            key, _, value = part.partition("=")
            overrides[key] = int(value) if value.isdigit() else float(value)
        else:
            overrides["lr"] = float(part)
    method = parse_method(label)
    suite = "mini" if task in tasks.RENDERED else "real"
    recipe = recipes.train_config(suite, method.name, backbone, precision=ARGS.precision, **overrides)
    model, form_of = backbones.create(BackboneConfig(backbone, weights=ARGS.weights, image_size=ARGS.image_size), seed)
    training, scored, classes = images_of(task, form_of)
    torch.manual_seed(seed)
    adapted = train.attach(model, s2a.method_config(method.name, **method.options), classes, form_of.size, recipe)
    began = time.perf_counter()
    with mock.patch.object(train, "parameter_groups", functools.partial(group_factors, factors=factors)):
        *_, last = train.train(adapted, training, recipe, seed)
    counted = sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and not n.startswith("head."))
    return {
        "warmup_epochs": recipe.warmup_epochs,
        "accuracy": round(scores.accuracy(adapted, scored, recipe), 2),
        "loss": round(last["loss"], 4),
        "trainable": counted,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--backbones", nargs="+", default=["mini_vit", "mini_swin", "mini_convnext"])
    parser.add_argument("--tasks", nargs="+", default=["textures", "count", "orientation", "location"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--forms", nargs="+", default=[])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--caltech", type=Path)
    args = parser.parse_args(namespace=ARGS)
    done = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    for form in args.forms:
        for backbone in args.backbones:
            for seed in args.seeds:
                for task in args.tasks:
                    found: dict[str, Any] = {"form": form, "backbone": backbone, "task": task, "seed": seed}
                    found |= {name: getattr(args, name) for name in ("epochs", "precision", "image_size")}
                    if key_of(found) in map(key_of, done):
                        continue
                    try:
                        done.append(found | run(form, backbone, task, seed, args.epochs))
                    except train.Diverged:
                        done.append(found | {"accuracy": 0.0})
                    with args.output.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
    same = (args.epochs, args.precision, args.image_size)
    show([r for r in done if key_of(r)[4:7] == same], args.tasks)


def show(done: list[dict[str, Any]], names: list[str]) -> None:
    """Means over the seeds, a row per form and backbone."""
    done = [{**r, "form": f"{r['form']} ({r['variant']})" if r.get("variant") else r["form"]} for r in done]
    rows = {(r["backbone"], r["form"]) for r in done}
    table = []
    for backbone, form in rows:
        means = {}
        for task in names:
            found = [r["accuracy"] for r in done if (r["backbone"], r["form"], r["task"]) == (backbone, form, task)]
            if found:
                means[task] = sum(found) / len(found), len(found)
        size = next((r.get("trainable", 0) for r in done if (r["backbone"], r["form"]) == (backbone, form)), 0)
        whole = len(means) == len(names)
        average = sum(m for m, _ in means.values()) / max(1, len(means))
        table.append((backbone, whole, average, form, size, means))
    for backbone, whole, average, form, size, means in sorted(table, key=lambda row: (row[0], -row[2])):
        cells = " | ".join(f"{means[t][0]:.1f} ({means[t][1]})" if t in means else "" for t in names)
        print(f"| {backbone} | {form} | {cells} | {average:.1f}{'' if whole else '*'} | {size:,} |")


if __name__ == "__main__":
    main()

r"""Compares forms of a method on fresh validation images of the rendered mini tasks.

The mini suite's own validation lists have 200 images, too few to tell forms apart (standard error 3.5 points). Here
each form trains on the suite's 1,000 training images and is scored on 2,000 images of the same renderers with seeds
that no list has; the test lists are never opened. ``digits`` has no renderer and is left out.

    python benchmarks/search_form.py OUT.jsonl --backbones mini_vit --tasks textures location --seeds 0 \
        --forms "s2a@0.01" "s2a:update_rank=4,lrp_rank=4@0.01" "lora@0.01"

A form is a method's label and the learning rate behind ``@`` (the card's without one); ``prompts*0.3`` after another
``@`` is a factor on the rate of parameters whose names have that word. What OUT.jsonl has is not run again.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import s2a
import torch
from s2a_bench.cells import backbones, recipes, scores, train
from s2a_bench.cells.backbones import DataFormat
from s2a_bench.config import BackboneConfig
from s2a_bench.data.images import resize_arrays
from s2a_bench.data.loading import Images
from s2a_bench.data.mini import tasks
from s2a_bench.sweeps.settings import parse_method

SCORED = 2000
VALIDATION_SPLIT = 100
"""Seed of the renderer in the place of a list's number; the suite's lists are 0, 1 and 2."""


@functools.cache
def images_of(task: str, form: DataFormat) -> tuple[Images, Images, int]:
    """Training images, validation images and the number of classes."""
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


def group_factors(model: Any, config: Any, factors: dict[str, float]) -> list[dict[str, Any]]:
    """The recipe's groups, those whose names have a word with another rate."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[tuple[float, float], list[Any]] = {}
    plain: list[dict[str, Any]] = PLAIN_GROUPS(model, config)
    for group in plain:
        for p in group["params"]:
            factor = next((f for word, f in factors.items() if word in names[id(p)]), 1.0)
            groups.setdefault((group["peak_lr"] * factor, group["weight_decay"]), []).append(p)
    return [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


PLAIN_GROUPS = train.parameter_groups


KEY = ("form", "backbone", "task", "seed", "epochs")
"""What a line of the output stands for; without epochs they are the suite's."""


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
            overrides[key] = float(value)
        else:
            overrides["lr"] = float(part)
    method = parse_method(label)
    recipe = recipes.train_config("mini", method.name, backbone, **overrides)
    model, form_of = backbones.create(BackboneConfig(backbone), seed)
    training, scored, classes = images_of(task, form_of)
    torch.manual_seed(seed)
    adapted = train.attach(model, s2a.method_config(method.name, **method.options), classes, form_of.size, recipe)
    began = time.perf_counter()
    with mock.patch.object(train, "parameter_groups", functools.partial(group_factors, factors=factors)):
        *_, last = train.train(adapted, training, recipe, seed)
    counted = sum(p.numel() for n, p in adapted.named_parameters() if p.requires_grad and not n.startswith("head."))
    return {
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
    args = parser.parse_args()
    done = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    for form in args.forms:
        for backbone in args.backbones:
            for seed in args.seeds:
                for task in args.tasks:
                    key = (form, backbone, task, seed, args.epochs)
                    if key in {tuple(r[name] for name in KEY) for r in done}:
                        continue
                    found = dict(zip(KEY, key, strict=True))
                    try:
                        done.append(found | run(*key))
                    except train.Diverged:
                        done.append(found | {"accuracy": 0.0})
                    with args.output.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
    show([r for r in done if r["epochs"] == args.epochs], args.tasks)


def show(done: list[dict[str, Any]], names: list[str]) -> None:
    """Means over the seeds, a row per form and backbone."""
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

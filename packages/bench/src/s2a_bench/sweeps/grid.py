"""From a request (suite, names, seeds, settings) to the cells it stands for. Pure: nothing is loaded or run."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from s2a_bench.cells import method_cards, recipes
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.data import augment
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import Mistakes
from s2a_bench.experiments import spec as experiment
from s2a_bench.sweeps.checks.request import check_one_backbone, check_seeds
from s2a_bench.sweeps.request import Request
from s2a_bench.sweeps.settings import (
    combinations,
    methods_with,
    parse_axes,
    parse_method,
    parse_settings,
    train_settings,
)

BACKBONES: dict[str, tuple[str, ...]] = {"mini": ("mini_vit",)}
"""Suite -> backbones of a sweep that names none; other suites take ``REAL_BACKBONES``."""

REAL_BACKBONES = (experiment.FAMILIES["vit"][1],)
"""A checkpoint that has seen no ImageNet-1k labels, by its full name: timm's plain names change what they load."""


def expand(request: Request) -> list[CellConfig]:
    """The cells of a request, each once: dataset by dataset, on each the ones that take longest first.

    So the methods can be compared on the first dataset long before the last one has been run, and at the end no long
    cell is left to a single worker.

    Raises:
        InputError: Unknown names or keys, values of the wrong kind, or settings that exclude each other.
        S2AError: An unknown method or a value that its config does not take.
    """
    suite = datasets.get_suite(request.suite)
    mistakes = Mistakes()
    root = request.data_dir
    asked = request.datasets or datasets.default_datasets(suite.name, root)
    names = mistakes.each(lambda name: datasets.get_dataset(suite.name, name, root).name, asked)
    planned = experiment.load_experiment(request.experiment) if request.experiment is not None else None
    labels = request.methods or (planned.methods(suite.name) if planned else method_cards.default_methods())
    usual = planned.backbones(suite.name) if planned else BACKBONES.get(suite.name, REAL_BACKBONES)
    backbones = request.backbones or usual
    with mistakes.collecting():
        check_one_backbone(backbones, request.weights)
    seeds = request.seeds or suite.seeds
    with mistakes.collecting():
        check_seeds(seeds)
    parsed = mistakes.each(parse_method, labels)
    mistakes.raise_all()
    points = combinations(parse_settings(request.settings), parse_axes(request.axes))
    trained = mistakes.each(lambda point: _methods_with_recipes(request, parsed, backbones, point), points)
    mistakes.raise_all()
    cells = [
        CellConfig(
            data=DataConfig(
                suite=suite.name,
                dataset=dataset,
                root=request.data_dir,
                evaluate=request.evaluate,
                limit_train=request.limit_train,
                limit_test=request.limit_test,
                augment=request.augment,
                mirror=request.mirror,
            ),
            backbone=BackboneConfig(backbone, request.weights, request.random_weights, request.image_size),
            method=method,
            train=train,
            seed=seed,
            device=request.device,
        )
        for several in trained
        for (method, backbone, train), dataset, seed in itertools.product(several, names, seeds)
    ]
    unique: dict[str, CellConfig] = {}
    for cell in cells:
        unique.setdefault(json.dumps(dataclasses.asdict(cell), sort_keys=True), cell)
    return sorted(
        unique.values(),
        key=lambda cell: (names.index(cell.data.dataset), -method_cards.card(cell.method.name).step_time),
    )


def backbone_sentence(request: Request) -> str:
    """Which backbone a request of own images that names none takes, and what else there is; empty for all others."""
    if request.suite != datasets.OWN or request.backbones or request.experiment is not None:
        return ""
    slow = "" if request.device.startswith("cuda") else "; on a CPU its steps are slow"
    return (
        f"No --backbones: {REAL_BACKBONES[0]}, the ViT-B/16 of the paper{slow}. finetune takes "
        "vit_small_patch14_dinov2.lvd142m there; mini_vit is embedded and fast."
    )


def _methods_with_recipes(
    request: Request,
    methods: Sequence[MethodConfig],
    backbones: Sequence[str],
    point: Mapping[str, Mapping[str, Any]],
) -> list[tuple[MethodConfig, str, TrainConfig]]:
    """The methods of one combination of settings, each on every backbone with its recipe for that.

    Raises:
        ValueError: Settings that do not fit, all of them.
    """
    mistakes = Mistakes()
    settings: dict[str, Any] = {}
    with mistakes.collecting():
        methods = methods_with(methods, point["method"])
    with mistakes.collecting():
        settings = train_settings(request, point["train"])
    found = mistakes.each(
        lambda pair: (*pair, recipes.train_config(request.suite, pair[0].name, pair[1], **settings)),
        list(itertools.product(methods, backbones)),
    )
    mistakes.raise_all()
    return found


def label(cell: CellConfig) -> str:
    """``s2a:bits=8 on digits, mini_vit, seed 0, train.lr=0.1``: a cell in words, with what was set or swept."""
    shown = recipes.by_preset(cell.method.name, cell.method.options)
    options = ",".join(f"{key}={value}" for key, value in shown.items())
    method = f"{cell.method.name}:{options}" if options else cell.method.name
    changed = recipes.changes(cell.data.suite, cell.method.name, cell.backbone.name, dataclasses.asdict(cell.train))
    recipe = []
    if cell.trial:  # tells them apart, the default too
        recipe = [f"lr {cell.train.lr:g}", f"weight decay {cell.train.weight_decay:g}"]
        changed = {key: value for key, value in changed.items() if key not in ("lr", "weight_decay")}
    where = [f"{method} on {cell.data.dataset}", cell.backbone.name, f"seed {cell.seed}"]
    return ", ".join([*where, *recipe, *recipes.spoken(changed), *augment.spoken(augment.changes(cell.data))])

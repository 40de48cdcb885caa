"""What can be wrong with the request of a sweep, found without torch, all of it together."""

from __future__ import annotations

import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2a_bench.config import BackboneConfig, TrainConfig
from s2a_bench.data.folder import find_dataset_folder
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError, Mistakes, unknown
from s2a_bench.experiments import spec as experiment
from s2a_bench.sweeps.checks.backbones import check_backbone, check_weights
from s2a_bench.sweeps.checks.devices import check_device_name
from s2a_bench.sweeps.checks.effects import check_data_options, check_setting_effects
from s2a_bench.sweeps.checks.methods import MethodTable, method_table
from s2a_bench.sweeps.request import Request
from s2a_bench.sweeps.settings import (
    coerce,
    combinations,
    parse_assignment,
    parse_axes,
    parse_settings,
    split_at_commas,
)

_CHECKED_TOGETHER = ({"epochs", "warmup_epochs"}, {"precision", "frozen"})
"""Fields of the recipe whose ranges depend on each other."""


def check_request(mistakes: Mistakes, request: Request) -> None:
    """Checks every name, option and value of a request, and that the files it names exist.

    What only torch or timm can tell (whether a backbone takes a method, say) is left to ``plan.identify``.

    Args:
        mistakes: Where what is wrong is added.
        request: The request.
    """
    known_suite = request.suite in datasets.SUITES
    if not known_suite:
        mistakes.add(unknown("suite", request.suite, datasets.SUITES))
    mistakes.each(
        lambda name: (
            datasets.get_dataset(request.suite, name, request.data_dir)
            if known_suite
            else datasets.find_dataset(name, request.data_dir)
        ),
        request.datasets,
    )
    labels = request.methods
    if request.experiment is not None:
        with mistakes.collecting():
            planned = experiment.load_experiment(request.experiment)
            labels = labels or planned.methods(request.suite)
    check_backbones(
        mistakes, request.backbones, request.weights, random_weights=request.random_weights, size=request.image_size
    )
    with mistakes.collecting():
        check_seeds(request.seeds)
    table = method_table()
    check_labels(mistakes, labels, table)
    check_settings(mistakes, request, [label.partition(":")[0] for label in labels], table)
    check_setting_effects(mistakes, request, labels, table)
    check_data_options(mistakes, request)
    for name in ("limit_train", "limit_test"):
        if (limit := getattr(request, name)) is not None and limit < 1:
            mistakes.add(
                InputError(f"data.{name}={limit} is too small; give at least 1, or leave it out to use every image.")
            )
    with mistakes.collecting():
        check_device_name(request.device)


def check_seeds(seeds: Sequence[int]) -> None:
    """Checks seeds.

    Raises:
        InputError: One is negative.
    """
    if seeds and min(seeds) < 0:
        raise InputError(f"Seeds {list(seeds)} must be integers of 0 or above.")


def check_backbones(
    mistakes: Mistakes,
    names: Iterable[str],
    weights: str | None = None,
    *,
    random_weights: bool = False,
    size: int | None = None,
) -> None:
    """Checks names of backbones and where their weights come from."""
    names = tuple(dict.fromkeys(names))
    mistakes.each(lambda name: check_backbone(BackboneConfig(name, weights, random_weights)), names)
    with mistakes.collecting():
        check_weights(BackboneConfig(weights=weights, random_weights=random_weights))
    with mistakes.collecting():
        check_one_backbone(names, weights)
    if size is not None and size < 1:
        mistakes.add(InputError(f"--image-size {size} is too small; it must be at least 1."))


def check_one_backbone(names: Sequence[str], weights: str | None) -> None:
    """Checks that a file of weights is for one backbone.

    Raises:
        InputError: There are several.
    """
    if weights and len({*names}) > 1:
        raise InputError(f"--weights is one file for one backbone, not for {', '.join(names)}; sweep them one by one.")


def check_labels(mistakes: Mistakes, labels: Iterable[str], table: MethodTable) -> None:
    """Checks methods written as ``name`` or ``name:key=value,key=value``: names, options, kinds of values."""
    for label in labels:
        name, colon, rest = label.partition(":")
        with mistakes.collecting():
            table.check_name(name)
        for part in split_at_commas(rest) if colon else ():
            with mistakes.collecting():
                key, value = parse_assignment(part, label)
                if name in table.options:
                    table.check_option(name, key)
                    if key in table.options[name]:
                        coerce(value, table.options[name][key].hint, f"{name}: {key}")


def check_settings(mistakes: Mistakes, request: Request, methods: Sequence[str], table: MethodTable) -> None:
    """Checks ``--set``, ``--sweep`` and the short flags of a request: keys, kinds of values, ranges of the recipe.

    Args:
        mistakes: Where what is wrong is added.
        request: The request.
        methods: Names of the methods that the settings are for; empty: any.
        table: Known methods.
    """
    recipe: dict[str, list[Any]] = {}
    given = [
        *((parse_settings, text) for text in dict.fromkeys(request.settings)),
        *((parse_axes, text) for text in dict.fromkeys(request.axes)),
    ]
    for parse, text in given:
        with mistakes.collecting():
            scopes = parse([text])
            for key, value in scopes["method"].items():
                check_shared_option(key, value if parse is parse_axes else [value], methods, table)
            for key, value in scopes["train"].items():
                values = value if parse is parse_axes else [value]
                recipe[key] = [*recipe.get(key, []), *(_recipe_value(key, each) for each in values)]
    with mistakes.collecting():
        combinations(parse_settings(request.settings), parse_axes(request.axes))  # keys that are given twice
    for key in ("epochs", "batch_size"):
        short = getattr(request, key)
        if short is None:
            continue
        if recipe.setdefault(key, [short]) != [short]:
            others = ", ".join(str(value) for value in recipe[key])
            mistakes.add(InputError(f"train.{key} is given twice ({short} and {others}); give it once."))
    check_recipe(mistakes, recipe)


def _recipe_value(key: str, value: Any) -> Any:
    hints = typing.get_type_hints(TrainConfig)
    if key not in hints:
        raise unknown("recipe key", f"train.{key}", [f"train.{name}" for name in hints])
    return coerce(value, hints[key], f"train.{key}")


def check_shared_option(key: str, values: Iterable[Any], methods: Sequence[str], table: MethodTable) -> None:
    """Checks an option that is set for all methods that have it.

    Raises:
        InputError: None of them has it, or a value of the wrong kind.
    """
    named = [name for name in methods if name in table.options]
    if len(named) < len(methods) or not named:  # some name is wrong, or unknown here: the option may be of any method
        named, kind = list(table.options), "option"
    else:
        kind = f"option of {', '.join(dict.fromkeys(named))}"
    having = [table.options[name][key].hint for name in named if key in table.options[name]]
    if not having:
        if table.complete and not table.partial:
            raise unknown(kind, f"method.{key}", [f"method.{each}" for name in named for each in table.options[name]])
        return
    for value in values:
        for hint in having:
            coerce(value, hint, f"method.{key}")


def check_recipe(mistakes: Mistakes, values: Mapping[str, Sequence[Any]]) -> None:
    """Checks the ranges of recipe values, each for itself but for those that depend on each other."""
    for key, several in values.items():
        together = next((group for group in _CHECKED_TOGETHER if key in group), {key})
        others = {name: values[name][0] for name in together if name != key and name in values}
        for value in several:
            with mistakes.collecting():
                # Without a warm-up of its own, a short run gets a short one.
                TrainConfig(**{"warmup_epochs": 0, **others, key: value})


def check_data(request: Request) -> None:
    """Checks that the images of a request's datasets are on disk. Names that are wrong are passed over.

    Raises:
        InputError: Some are not; the sentence says how to get them.
    """
    if request.suite not in datasets.SUITES:
        return
    root = request.data_dir
    names = request.datasets or datasets.default_datasets(request.suite, root)
    wanted = Mistakes().each(lambda name: datasets.get_dataset(request.suite, name, root), names)
    absent: list[tuple[Dataset, InputError]] = []
    for dataset in wanted:
        if not dataset.embedded:
            try:
                find_dataset_folder(dataset, request.data_dir)
            except InputError as error:
                absent.append((dataset, error))
    if len(absent) == 1:
        raise absent[0][1]
    if absent:
        names = ", ".join(dataset.name for dataset, _ in absent)
        where = f"in {request.data_dir}" if request.data_dir else "on disk, and no --data-dir was given"
        folder = shlex.quote(str(request.data_dir or "DIR"))
        raise InputError(
            f"{len(absent)} of {len(wanted)} datasets have no list of images {where}: {names}; run `s2a-bench data "
            f"prepare NAME --from DOWNLOAD --data-dir {folder}` for each, or name others with "
            "--datasets."
        )


def check_folder(path: Path, flag: str) -> None:
    """Checks that a folder exists.

    Raises:
        InputError: It does not.
    """
    if not path.is_dir():
        raise InputError(f"{flag} {path} is no folder; give an existing one.")

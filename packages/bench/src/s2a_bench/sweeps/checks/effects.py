"""Options of a sweep that can have no effect with the others: whoever gave one meant something, so it is refused.

Not refused: what is said twice; options of a run beside ``--dry-run``, and seeds beside a search that stops before the
final cells (``--evaluate val``): the same command without that one word is what its user runs next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s2a_bench.config import DataConfig
from s2a_bench.data import augment
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.experiments import spec as experiment
from s2a_bench.sweeps.checks.methods import MethodTable, method_table
from s2a_bench.sweeps.request import Request, RunOptions
from s2a_bench.sweeps.settings import parse_assignment, parse_axes, parse_settings, split_at_commas


def check_data_options(mistakes: Mistakes, request: Request) -> None:
    """Refuses a data folder where every dataset is embedded, limits that no list reaches, no mirrors where none are.

    Args:
        mistakes: Where what is refused is added.
        request: The request; names that are wrong are passed over.
    """
    _check_augmentation(mistakes, request)
    found = find_datasets(request)
    if not found:
        return
    names = ", ".join(dataset.name for dataset in found)
    if request.data_dir is not None and all(dataset.embedded for dataset in found):
        mistakes.add(
            InputError(
                f"--data-dir {request.data_dir} has no effect: {names} of suite {request.suite}: embedded or rendered, "
                "read from no folder; leave it out, or name a suite that lies there with --suite."
            )
        )
    for flag, lists in (("limit_train", ("train", "both")), ("limit_test", ("val", "test"))):
        limit = getattr(request, flag)
        counts = [getattr(dataset.counts, name) for dataset in found for name in lists]
        if limit is None or None in counts or limit <= max(counts):
            continue
        mistakes.add(
            InputError(
                f"--{flag.replace('_', '-')} {limit} has no effect: no list of {names} has more than {max(counts)} "
                "images; give fewer, or leave it out."
            )
        )


def _check_augmentation(mistakes: Mistakes, request: Request) -> None:
    if request.suite not in datasets.SUITES:
        with mistakes.collecting():
            augment.parse(request.augment)
        return
    with mistakes.collecting():
        found = augment.resolve(DataConfig(request.suite, augment=request.augment))
        if not request.mirror and found.name == "none":
            why = f"--augment {request.augment}" if request.augment != "default" else f"suite {request.suite}"
            raise InputError(f"--no-mirror has no effect: training images of {why} are not augmented; leave it out.")


def find_datasets(request: Request) -> list[Dataset]:
    """The datasets of a request; names that are wrong are passed over."""
    if request.suite not in datasets.SUITES:
        return []
    names, root = request.datasets, request.data_dir
    with Mistakes().collecting():
        names = names or datasets.default_datasets(request.suite, root)
    return Mistakes().each(lambda name: datasets.get_dataset(request.suite, name, root), names)


def check_sweep_options(mistakes: Mistakes, request: Request, options: RunOptions, *, searches: bool) -> None:
    """Refuses what a sweep would pass over: an experiment, a switch of the feature cache, trained states to keep.

    Args:
        mistakes: Where what is refused is added.
        request: What is run.
        options: How it is run.
        searches: Whether a search chooses the configs.
    """
    if request.experiment is not None and request.methods and request.backbones:
        mistakes.add(
            InputError(
                f"--experiment {request.experiment} has no effect: it says which methods on which backbones, and "
                "--methods and --backbones are both given; leave one of the three out."
            )
        )
    if options.keep.adapters and searches and request.evaluate == "val":
        mistakes.add(
            InputError(
                "--keep-adapters has no effect: what the trials of a search trained is not kept, and with --evaluate "
                "val there are no other cells; leave it out, or run without --evaluate val."
            )
        )
    if searches and request.evaluate == "select":
        mistakes.add(
            InputError(
                "--evaluate select does not go with --search: a search chooses on the validation images by itself, and "
                "trains the chosen config on train and val together; leave one of the two out."
            )
        )
    if not options.keep.features:
        with mistakes.collecting():
            _check_feature_cache(request)


def _check_feature_cache(request: Request) -> None:
    table, labels = method_table(), request.methods
    if not labels and request.experiment is not None:
        with Mistakes().collecting():
            labels = experiment.load_experiment(request.experiment).methods(request.suite)
    named = {label.partition(":")[0] for label in labels}
    if named and named <= table.options.keys() - table.fixed_features:
        raise InputError(
            f"--no-feature-cache has no effect: features are cached only for {', '.join(sorted(table.fixed_features))},"
            f" not for {', '.join(sorted(named))}; leave it out."
        )
    if request.suite in datasets.SUITES and _is_augmented(request):
        raise InputError(
            f"--no-feature-cache has no effect: images of suite {request.suite} are augmented anew in every epoch, so "
            "that no features are cached; leave it out."
        )


def _is_augmented(request: Request) -> bool:
    with Mistakes().collecting():  # a name that is wrong is named elsewhere
        return augment.resolve(DataConfig(request.suite, augment=request.augment)).name != "none"
    return False


def check_setting_effects(mistakes: Mistakes, request: Request, labels: Sequence[str], table: MethodTable) -> None:
    """Refuses settings that none of the methods heeds.

    Args:
        mistakes: Where what is refused is added.
        request: ``--set`` and ``--sweep``; what is wrong with them is passed over.
        labels: Methods that are run, with their options; empty: the default ones.
        table: Known methods.
    """
    method: dict[str, None] = {}
    train: dict[str, list[Any]] = {}
    for text in request.settings:
        with Mistakes().collecting():
            scopes = parse_settings([text])
            method |= dict.fromkeys(scopes["method"])
            train |= {key: [value] for key, value in scopes["train"].items()}
    for text in request.axes:
        with Mistakes().collecting():
            scopes = parse_axes([text])
            method |= dict.fromkeys(scopes["method"])
            train |= scopes["train"]
    if any(train.get("patience", ())) and request.evaluate != "select":
        mistakes.add(
            InputError(
                f"train.patience has no effect with --evaluate {request.evaluate}: only --evaluate select scores "
                "validation images after every epoch; leave one of the two out."
            )
        )
    given = {label: _own_options(label) for label in labels}
    names = {label.partition(":")[0] for label in labels}
    if not names or not names <= table.options.keys() or names & table.partial:
        return
    for key in method:
        having = [label for label in labels if key in table.options[label.partition(":")[0]]]
        if having and all(key in given[label] for label in having):
            mistakes.add(
                InputError(f"method.{key} has no effect: {', '.join(having)} gives {key} itself; give it in one place.")
            )
    shown = ", ".join(sorted(names))
    if any(value is True for value in train.get("checkpointing", ())) and names <= table.frozen_backbone:
        mistakes.add(_no_effect("checkpointing", f"the backbone of {shown} runs without gradient and keeps nothing"))
    if names <= table.fixed_features:
        if any(train.get("drop_path", ())):
            mistakes.add(_no_effect("drop_path", f"the backbone of {shown} runs in evaluation mode"))
        if "lr" in train and None not in train.get("head_lr", [None]):
            mistakes.add(_no_effect("lr", f"{shown} trains the head alone, at train.head_lr"))
    if any(value != "fp32" for value in train.get("frozen", ())) and names == {"full"}:
        mistakes.add(_no_effect("frozen", "full trains every weight, and none is frozen"))


def _no_effect(key: str, why: str) -> InputError:
    return InputError(f"train.{key} has no effect: {why}; leave it out.")


def _own_options(label: str) -> set[str]:
    _, colon, rest = label.partition(":")
    found: set[str] = set()
    for part in split_at_commas(rest) if colon else ():
        with Mistakes().collecting():
            found.add(parse_assignment(part, label)[0])
    return found

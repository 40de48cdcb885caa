"""From a request (suite, names, seeds, settings) to the cells it stands for. Pure: nothing is loaded or run."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from s2a_bench.cells import recipes
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import InputError, unknown
from s2a_bench.experiments import spec as experiment

METHODS = ("linear", "bias", "lora", "full", "s2a")
"""What a sweep compares when no method is named."""

BACKBONES: dict[str, tuple[str, ...]] = {"mini": ("mini_vit",)}
"""Suite -> backbones of a sweep that names none; other suites take ``REAL_BACKBONES``."""

REAL_BACKBONES = (experiment.FAMILIES["vit"][1],)
"""A checkpoint that has seen no ImageNet-1k labels, by its full name: timm's plain names change what they load."""

SCOPES = ("method", "train")


@dataclasses.dataclass(frozen=True)
class Request:
    """What a sweep is asked for; empty names take the suite's defaults.

    Attributes:
        suite: Key of ``datasets.SUITES``.
        datasets: Names or aliases within the suite.
        backbones: timm or mini backbones.
        methods: Labels ``name`` or ``name:key=value,key=value``.
        seeds: One cell each.
        settings: ``method.KEY=VALUE`` (every named method that has the option) and ``train.KEY=VALUE``.
        axes: ``method.KEY=V1,V2`` and ``train.KEY=V1,V2``: all combinations are run.
        experiment: Name or file of an experiment: its methods and backbones where none are named here.
        epochs: Short for ``train.epochs``.
        batch_size: Short for ``train.batch_size``.
        data_dir: Root of prepared datasets.
        weights: Local file for the one backbone.
        random_weights: Do without pretrained weights.
        image_size: Side in pixels; ``None`` takes the checkpoint's own.
        evaluate: See ``DataConfig``.
        limit_train: See ``DataConfig``.
        limit_test: See ``DataConfig``.
        device: torch device.
    """

    suite: str = "mini"
    datasets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    experiment: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    data_dir: str | None = None
    weights: str | None = None
    random_weights: bool = False
    image_size: int | None = None
    evaluate: Literal["test", "val"] = "test"
    limit_train: int | None = None
    limit_test: int | None = None
    device: str = "cpu"


def expand(request: Request) -> list[CellConfig]:
    """The cells of a request, each once, the ones that take longest first.

    Raises:
        InputError: Unknown names or keys, values of the wrong kind, or settings that exclude each other.
        S2AError: An unknown method or a value that its config does not take.
    """
    suite = datasets.get_suite(request.suite)
    names = [datasets.get_dataset(suite.name, name).name for name in request.datasets or suite.defaults]
    planned = experiment.load_experiment(request.experiment) if request.experiment is not None else None
    labels = request.methods or (planned.methods(suite.name) if planned else METHODS)
    usual = planned.backbones(suite.name) if planned else BACKBONES.get(suite.name, REAL_BACKBONES)
    backbones = request.backbones or usual
    if request.weights and len(set(backbones)) > 1:
        raise InputError(
            f"--weights is one file for one backbone, not for {', '.join(backbones)}; sweep them one by one."
        )
    seeds = request.seeds or suite.seeds
    if min(seeds) < 0:
        raise InputError(f"Seeds {list(seeds)} must be integers of 0 or above.")
    parsed = [parse_method(label) for label in labels]
    points = combinations(parse_settings(request.settings), parse_axes(request.axes))
    cells = [
        CellConfig(
            data=DataConfig(
                suite=suite.name,
                dataset=dataset,
                root=request.data_dir,
                evaluate=request.evaluate,
                limit_train=request.limit_train,
                limit_test=request.limit_test,
            ),
            backbone=BackboneConfig(backbone, request.weights, request.random_weights, request.image_size),
            method=method,
            train=recipes.train_config(suite.name, method.name, **train_settings(request, point["train"])),
            seed=seed,
            device=request.device,
        )
        for point in points
        for method, backbone, dataset, seed in itertools.product(
            methods_with(parsed, point["method"]), backbones, names, seeds
        )
    ]
    unique: dict[str, CellConfig] = {}
    for cell in cells:
        unique.setdefault(json.dumps(dataclasses.asdict(cell), sort_keys=True), cell)
    return sorted(unique.values(), key=lambda cell: _COST.get(cell.method.name, 1))


_COST = {"full": 0, "linear": 2}
"""Rank by duration: long cells first keep all workers busy to the end."""


def label(cell: CellConfig) -> str:
    """``s2a:bits=8 on digits, mini_vit, seed 0, train.lr=0.1``: a cell in words, with what was set or swept."""
    options = ",".join(f"{key}={value}" for key, value in cell.method.options.items())
    method = f"{cell.method.name}:{options}" if options else cell.method.name
    changed = recipes.changes(cell.data.suite, cell.method.name, dataclasses.asdict(cell.train))
    recipe = []
    if cell.trial:  # tells them apart, the default too
        recipe = [f"lr {cell.train.lr:g}", f"weight decay {cell.train.weight_decay:g}"]
        changed = {key: value for key, value in changed.items() if key not in ("lr", "weight_decay")}
    where = [f"{method} on {cell.data.dataset}", cell.backbone.name, f"seed {cell.seed}"]
    return ", ".join([*where, *recipe, *recipes.spoken(changed)])


def parse_method(text: str) -> MethodConfig:
    """``name`` or ``name:key=value,key=value``, checked against the registry.

    Raises:
        InputError: Not of this form, or a value of the wrong kind.
        S2AError: An unknown method or option.
    """
    name, colon, rest = text.partition(":")
    options = dict(_assignment(part, text) for part in _split(rest)) if colon else {}
    return _method(name, options)


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``scope.KEY=VALUE`` texts by scope.

    Raises:
        InputError: Not of this form, an unknown scope, or a key given twice with different values.
    """
    found: dict[str, dict[str, Any]] = {scope: {} for scope in SCOPES}
    for text in texts:
        name, value = _assignment(text, text)
        scope, dot, key = name.partition(".")
        if not dot:
            raise InputError(f"--set {text}: write method.KEY=VALUE or train.KEY=VALUE.")
        if scope not in SCOPES:
            raise unknown(f"scope in --set {text}:", scope, SCOPES)
        if key in found[scope] and found[scope][key] != value:
            raise InputError(f"--set gives {name} twice ({found[scope][key]!r} and {value!r}); give it once.")
        found[scope][key] = value
    return found


def parse_axes(texts: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """``scope.KEY=V1,V2,...`` texts by scope: the values of each key, each once.

    Raises:
        InputError: Not of this form, an unknown scope, or a key given twice.
    """
    found: dict[str, dict[str, list[Any]]] = {scope: {} for scope in SCOPES}
    for text in texts:
        name, equals, rest = text.partition("=")
        scope, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise InputError(f"--sweep {text}: write method.KEY=V1,V2 or train.KEY=V1,V2.")
        if scope not in SCOPES:
            raise unknown(f"scope in --sweep {text}:", scope, SCOPES)
        if key in found[scope]:
            raise InputError(f"--sweep gives {scope}.{key} twice; list all of its values in one.")
        values: list[Any] = []
        for part in _split(rest):
            _, value = _assignment(f"{key}={part}", text)
            if value not in values:
                values.append(value)
        found[scope][key] = values
    return found


def combinations(
    settings: Mapping[str, Mapping[str, Any]], axes: Mapping[str, Mapping[str, list[Any]]]
) -> list[dict[str, dict[str, Any]]]:
    """Every combination of the axes, with the fixed settings, as ``parse_settings`` gives them.

    Raises:
        InputError: A key that is both fixed and swept.
    """
    for scope in SCOPES:
        if both := settings[scope].keys() & axes[scope].keys():
            raise InputError(f"{scope}.{min(both)} is given to --set and to --sweep; give it to one of them.")
    keys = [(scope, key) for scope in SCOPES for key in axes[scope]]
    found = []
    for values in itertools.product(*(axes[scope][key] for scope, key in keys)):
        point = {scope: dict(settings[scope]) for scope in SCOPES}
        for (scope, key), value in zip(keys, values, strict=True):
            point[scope][key] = value
        found.append(point)
    return found


def methods_with(methods: Sequence[MethodConfig], options: Mapping[str, Any]) -> list[MethodConfig]:
    """The methods with shared options added, each to those that have it; a label's own options go first.

    Raises:
        InputError: An option that none of the methods has.
        S2AError: A value that a config does not take.
    """
    fields = {method.name: _method_hints(method.name) for method in methods}
    for key in options:
        if not any(key in hints for hints in fields.values()):
            known = sorted({f"method.{name}" for hints in fields.values() for name in hints})
            raise unknown(f"option of {', '.join(fields)}", f"method.{key}", known)
    return [
        _method(method.name, {**{k: v for k, v in options.items() if k in fields[method.name]}, **method.options})
        for method in methods
    ]


def train_settings(request: Request, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides of the recipe: ``--set train.*`` and the short flags.

    Raises:
        InputError: Unknown key, value of the wrong kind, or one key given both ways with different values.
    """
    hints = typing.get_type_hints(TrainConfig)
    values = {}
    for key, value in settings.items():
        if key not in hints:
            raise unknown("recipe key", f"train.{key}", [f"train.{name}" for name in hints])
        values[key] = coerce(value, hints[key], f"train.{key}")
    for key in ("epochs", "batch_size"):
        short = getattr(request, key)
        if short is not None and values.setdefault(key, short) != short:
            raise InputError(f"train.{key} is given twice ({short} and {values[key]}); give it once.")
    return values


def parse_value(text: str) -> Any:
    """A value as JSON or a Python literal, else the text itself when it is a plain word or a size (``8GiB``).

    Raises:
        InputError: It looks like a number, list or quoted text but is none.
    """
    for read in (_strict_json, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    if re.fullmatch(r"[0-9.]+ ?[KMG]?i?B", text):
        return text
    if not text or text[0] in "[({\"'+-.0123456789":
        raise InputError(f"{text!r} is no value; write a number, true, false, null, a list such as [1,2], or a word.")
    return text


def _strict_json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)  # NaN and Infinity are no JSON

    return json.loads(text, parse_constant=refuse)


def coerce(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the annotated type of a config field, without guessing (an int may stand for a float).

    Raises:
        InputError: It does not fit.
    """
    fitted = _fit(value, hint)
    if fitted is _MISFIT:
        raise InputError(f"{where}={value!r} has the wrong type; it must be {_spoken(hint)}.")
    return fitted


_MISFIT = object()


def _fit(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if hint is None or hint is type(None):
        return None if value is None else _MISFIT
    if origin is Literal:
        return value if any(value == a and type(value) is type(a) for a in arguments) else _MISFIT
    if origin in (typing.Union, types.UnionType):
        fits = (_fit(value, argument) for argument in arguments)
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            return _MISFIT
        inner = arguments[0] if arguments else Any
        items = [_fit(item, inner) for item in value]
        return _MISFIT if any(item is _MISFIT for item in items) else origin(items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and hint is not bool) or (isinstance(value, float) and not math.isfinite(value)):
        return _MISFIT
    return value if isinstance(value, origin or hint) else _MISFIT


def _spoken(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spoken(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"a list of {_spoken(arguments[0])}s" if arguments else "a list"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    return names.get(hint, str(hint))


def _method_hints(name: str) -> dict[str, Any]:
    from s2a.registry import get_entry

    config = get_entry(name).config
    hints = typing.get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _method(name: str, options: Mapping[str, Any]) -> MethodConfig:
    import s2a

    hints = _method_hints(name)
    fitted = {k: coerce(v, hints[k], f"{name}: {k}") if k in hints else v for k, v in options.items()}
    s2a.method_config(name, **fitted)
    return MethodConfig(name, fitted)


def _assignment(text: str, whole: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{whole!r}: {text!r} is no KEY=VALUE.")
    try:
        return key.strip(), parse_value(value.strip())
    except InputError as error:
        raise InputError(f"{whole!r}: {error}") from error


def _split(text: str) -> list[str]:
    """Splits at the commas that stand outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts

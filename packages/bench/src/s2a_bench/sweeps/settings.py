"""``KEY=VALUE`` texts (``--set``, ``--sweep``, a method's options) into checked values. Nothing is loaded or run."""

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

from s2a_bench.config import MethodConfig, TrainConfig
from s2a_bench.errors import InputError, unknown
from s2a_bench.sweeps.request import Request

SCOPES = ("method", "train")


def parse_method(text: str) -> MethodConfig:
    """``name`` or ``name:key=value,key=value``, checked against the registry.

    Raises:
        InputError: Not of this form, or a value of the wrong kind.
        S2AError: An unknown method or option.
    """
    name, colon, rest = text.partition(":")
    options = dict(parse_assignment(part, text) for part in split_at_commas(rest)) if colon else {}
    return _method(name, options)


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``scope.KEY=VALUE`` texts by scope.

    Raises:
        InputError: Not of this form, an unknown scope, or a key given twice with different values.
    """
    found: dict[str, dict[str, Any]] = {scope: {} for scope in SCOPES}
    for text in texts:
        name, value = parse_assignment(text, text)
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
        for part in split_at_commas(rest):
            _, value = parse_assignment(f"{key}={part}", text)
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
        _method(
            method.name,
            {
                **_without_preset(method.name, {k: v for k, v in options.items() if k in fields[method.name]}),
                **_without_preset(method.name, method.options),
            },
        )
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
        wrong = "is unknown" if typing.get_origin(hint) is Literal else "has the wrong type"
        raise InputError(f"{where}={value!r} {wrong}; it must be {_type_text(hint)}.")
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


def _type_text(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(argument) for argument in arguments)
    if origin in (tuple, list):
        plural = {int: "integers", float: "numbers", str: "words"}
        return f"a list of {plural.get(arguments[0], 'values')}" if arguments else "a list"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    return names.get(hint, str(hint))


def _method_hints(name: str) -> dict[str, Any]:
    from s2a.registry import get_entry, presets_of

    config = get_entry(name).config
    hints = typing.get_type_hints(config)
    presets = presets_of(name)
    own = {"preset": Literal[tuple(presets)]} if presets else {}
    return {field.name: hints[field.name] for field in dataclasses.fields(config)} | own


def _method(name: str, options: Mapping[str, Any]) -> MethodConfig:
    import s2a

    hints = _method_hints(name)
    fitted = {k: coerce(v, hints[k], f"{name}: {k}") if k in hints else v for k, v in options.items()}
    s2a.method_config(name, **fitted)
    return MethodConfig(name, _without_preset(name, fitted))


def _without_preset(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options with those of ``preset`` in its place; what is given beside it goes over them."""
    from s2a.registry import presets_of

    if "preset" not in options:
        return dict(options)
    found = presets_of(name).get(options["preset"])
    if found is None:  # Not one of its presets: whoever makes a config of it says so.
        return dict(options)
    return {**found, **{key: value for key, value in options.items() if key != "preset"}}


def parse_assignment(text: str, whole: str) -> tuple[str, Any]:
    """``KEY=VALUE`` as the key and the value.

    Args:
        text: The assignment.
        whole: What it is a part of, for the error.

    Raises:
        InputError: Not of this form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{whole!r}: {text!r} is no KEY=VALUE.")
    try:
        return key.strip(), parse_value(value.strip())
    except InputError as error:
        raise InputError(f"{whole!r}: {error}") from error


def split_at_commas(text: str) -> list[str]:
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

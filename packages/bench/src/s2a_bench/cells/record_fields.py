"""What each field of a record may hold: the types and ranges that every reader of records relies on.

A record is a file that people copy, edit and merge. Whoever reads one calls ``check_fields`` first, so that reports,
plans and trackers need no check of their own.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Check = tuple[Callable[[Any], bool], str]
"""Whether a value is allowed, and what is, in words."""

_DEPTH, _LARGEST_INT, _LONGEST_NUMBER = 20, 2**63 - 1, 1e15
_ID = re.compile(r"[\w-]+", re.ASCII)
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,250}")


def check_fields(values: Mapping[str, Any]) -> None:
    """Checks the values of a record, field by field; fields that are left out have their defaults.

    Raises:
        ValueError: The first value that is not allowed, with its name and what is.
    """
    for name, value in values.items():
        if name not in _FIELDS:
            continue
        allowed, words = _FIELDS[name]
        if not _is_plain(value) or not allowed(value):
            raise ValueError(f"{name} {_shorten(value)} must be {words}")
    if values.get("status") == "done" and values.get("accuracy") is None:
        raise ValueError("status 'done' needs an accuracy")


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a JSON value can be stored and shown anywhere: finite numbers, text that UTF-8 has, not too deep."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return abs(value) <= _LARGEST_INT
    if isinstance(value, float):
        return math.isfinite(value)
    if depth >= _DEPTH:
        return False
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(each, depth + 1) for key, each in value.items())
    return isinstance(value, list) and all(_is_plain(each, depth + 1) for each in value)


def _shorten(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Kinds of values


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


def _whole(least: int, *, none: bool = False) -> Check:
    words = f"a whole number from {least}" + (" or null" if none else "")
    return lambda v: (none and v is None) or (_is_int(v) and least <= v <= _LONGEST_NUMBER), words


def _number(least: float, most: float = _LONGEST_NUMBER, *, none: bool = False) -> Check:
    words = f"a number from {least:g} to {most:g}" + (" or null" if none else "")
    return lambda v: (none and v is None) or (_is_number(v) and least <= v <= most), words


def _above_zero(*, none: bool = False) -> Check:
    words = "a number above 0" + (" or null" if none else "")
    return lambda v: (none and v is None) or (_is_number(v) and 0 < v <= _LONGEST_NUMBER), words


def _one_of(*values: str) -> Check:
    return lambda v: isinstance(v, str) and v in values, ", ".join(values[:-1]) + f" or {values[-1]}"


def _list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _dict_of(allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, dict) and all(allowed(each) for each in v.values())


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _has(table: Mapping[str, Check], required: tuple[str, ...] = ()) -> Callable[[Any], bool]:
    """Whether a value is a mapping with required keys, in which known keys have allowed values."""

    def allowed(value: Any) -> bool:
        if not isinstance(value, dict) or not value.keys() >= {*required}:
            return False
        return all(table[key][0](each) for key, each in value.items() if key in table)

    return allowed


def _is_curve(value: Any) -> bool:
    """One entry per epoch, in order, all of them numbers."""
    if not isinstance(value, list):
        return False
    if not all(isinstance(point, dict) and all(map(_is_number, point.values())) for point in value):
        return False
    epochs = [point["epoch"] for point in value if "epoch" in point]
    seconds = [point["seconds"] for point in value if "seconds" in point]
    rising = all(map(_whole(1)[0], epochs)) and all(a < b for a, b in itertools.pairwise(epochs))
    return rising and all(map(_number(0)[0], seconds))


_TEXT: Check = (lambda v: isinstance(v, str), "a text")
_CELL_ID: Check = (lambda v: isinstance(v, str) and bool(_ID.fullmatch(v)), "an id of letters, digits, _ and -")
_NAME_TEXT: Check = (lambda v: isinstance(v, str) and bool(_NAME.fullmatch(v)), "a name on one line")
_SWITCH: Check = (lambda v: isinstance(v, bool), "true or false")
_COUNT, _AMOUNT, _LIMIT = _whole(0), _number(0, none=True), _whole(1, none=True)
_MAYBE_COUNT = _whole(0, none=True)

_TRAIN: dict[str, Check] = {
    "epochs": _whole(1),
    "warmup_epochs": _whole(0),
    "batch_size": _whole(1),
    "lr": _above_zero(),
    "head_lr": _above_zero(none=True),
    "weight_decay": _number(0),
    "label_smoothing": _number(0, 1),
    "clip_norm": _number(0),
    "drop_path": _number(0, 1),
    "precision": _TEXT,
    "checkpointing": _SWITCH,
    "frozen": _TEXT,
    "patience": _COUNT,
    "balance": _SWITCH,
}
_DATA: dict[str, Check] = {
    "size": _LIMIT,
    "interpolation": _TEXT,
    "resize": _TEXT,
    "augment": _TEXT,
    "augmentation": _TEXT,
    "mirror": _SWITCH,
    "mean": (lambda v: isinstance(v, list) and all(map(_is_number, v)), "numbers"),
    "std": (lambda v: isinstance(v, list) and all(map(_is_number, v)), "numbers"),
}
_SEARCH: dict[str, Check] = {
    "mode": _NAME_TEXT,
    "trials": _COUNT,
    "scheduler": _NAME_TEXT,
    "chosen": (_dict_of(_is_scalar), "values by name"),
    "trial_ids": (lambda v: isinstance(v, list) and all(map(_CELL_ID[0], v)), "ids"),
}

_FIELDS: dict[str, Check] = {
    "cell_id": _CELL_ID,
    "status": _one_of("done", "failed", "stopped"),
    "suite": _NAME_TEXT,
    "dataset": _NAME_TEXT,
    "group": _NAME_TEXT,
    "backbone": _NAME_TEXT,
    "method": _NAME_TEXT,
    "method_config": (lambda v: isinstance(v, dict), "a method's options by name"),
    "train_config": (_has(_TRAIN), "a recipe: numbers, texts and switches by name"),
    "seed": (lambda v: _is_int(v) and abs(v) <= _LARGEST_INT, "a whole number"),
    "epochs": _whole(1),
    "evaluated_on": _one_of("test", "val", "select"),
    "data_id": _TEXT,
    "split_id": _TEXT,
    "data_config": (_has(_DATA), "what was done to images, by name"),
    "synthetic": _SWITCH,
    "lossy": _SWITCH,
    "checkpoint_id": _TEXT,
    "random_weights": _SWITCH,
    "limit_train": _LIMIT,
    "limit_test": _LIMIT,
    "classes": _COUNT,
    "train_images": _COUNT,
    "scored_images": _COUNT,
    "accuracy": _number(0, 100, none=True),
    "balanced_accuracy": _number(0, 100, none=True),
    "macro_f1": _number(0, 100, none=True),
    "val_accuracy": _number(0, 100, none=True),
    "best_epoch": _whole(1, none=True),
    "params_total": _MAYBE_COUNT,
    "params_backbone": _MAYBE_COUNT,
    "params_trainable": _MAYBE_COUNT,
    "params_percent": _AMOUNT,
    "weights_mb": _AMOUNT,
    "theoretical_mb": _AMOUNT,
    "saved_mb": _AMOUNT,
    "measured_mb": _AMOUNT,
    "host_mb": _AMOUNT,
    "peak_mb": _AMOUNT,
    "images_per_second": _AMOUNT,
    "seconds": _AMOUNT,
    "scoring_seconds": _AMOUNT,
    "wall_seconds": _AMOUNT,
    "feature_cache": _SWITCH,
    "guessing_loss": _AMOUNT,
    "guessing_accuracy": _number(0, 100, none=True),
    "did_not_learn": (_list_of_texts, "a list of texts"),
    "curve": (_is_curve, "a list with the numbers of each epoch, in their order"),
    "resumed": _COUNT,
    "notes": (_list_of_texts, "a list of sentences"),
    "adapter_id": _TEXT,
    "error": (lambda v: v is None or _dict_of(lambda each: isinstance(each, str))(v), "texts by name, or null"),
    "trial": _SWITCH,
    "search": (
        lambda v: v is None or _has(_SEARCH, ("mode", "trials", "chosen", "trial_ids"))(v),
        "how a search chose, or null",
    ),
    "started_at": _TEXT,
    "git_sha": _TEXT,
    "git_dirty": (lambda v: v is None or isinstance(v, bool), "true, false or null"),
    "versions": (_dict_of(lambda each: isinstance(each, str)), "versions by name"),
    "hardware": (_dict_of(_is_scalar), "texts and numbers by name"),
    "protocol": _whole(1),
    "schema": _whole(1),
}

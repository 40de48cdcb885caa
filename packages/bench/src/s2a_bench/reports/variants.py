"""Rows of a table: which records belong to one, and the short name that sets it apart from its neighbours."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from s2a_bench.cells import method_cards, recipes
from s2a_bench.cells.record import Record
from s2a_bench.reports import statistics as stats

WORDS: dict[str, str] = {
    "lrp_rank": "rank {}",
    "lsb_reduction": "reduction {}",
    "lrp_shape": "{} prompts",
    "lrp_std": "prompt std {}",
    "lsb_activation": "{} in the branch",
    "bits": "{} bits",
    "levels": "{} levels",
    "sites": "sites {}",
    "saved_budget_mb": "saved budget {} MB",
    "memory_budget_mb": "saved budget {} MB",
    "peak_budget": "peak budget {}",
    "memory_budget": "peak budget {}",
    "recompute": "recomputed in {}",
    "search": "searched ({})",
    "train.lr": "lr {}",
    "train.batch_size": "batch {}",
    "train.epochs": "{} epochs",
    "train.weight_decay": "weight decay {}",
    "train.warmup_epochs": "warm-up {}",
    "train.precision": "{}",
}
"""Option -> how a row's name says it. Options that are not here are said as ``rank 16`` for numbers, else
``key=value``."""

VALUES: dict[tuple[str, Any], str] = {
    ("lrp_rank", 0): "no prompt",
    ("lsb_reduction", 0): "no side branch",
    ("train_bias", False): "no bias",
    ("train_bias", True): "bias",
    ("train_a", False): "frozen A",
    ("in_place", True): "in place",
    ("offload", True): "offloaded",
    ("activations", "exact"): "exact",
    ("activations", "lean"): "lean",
    ("activations", "paper"): "4-bit activations",
    ("preset", "plus"): "plus",
    ("search", None): "no search",
    ("train.checkpointing", True): "checkpointing",
    ("train.checkpointing", False): "no checkpointing",
}
"""Values with words of their own."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row's records and its name.

    Attributes:
        method: Its method.
        number: 0 for the first variant of a method in its table, counted up.
        label: Short name, unique in the table: the method and what differs from its defaults *and* within the table.
        options: What differs from the defaults or within the table, as ``key=value``.
        records: All cells of the row.
    """

    method: str
    number: int
    label: str
    options: tuple[str, ...]
    records: tuple[Record, ...]


def canonical_text(values: Any) -> str:
    """JSON text that is equal for equal values."""
    return json.dumps(values, sort_keys=True, default=str)


def format_option(value: Any) -> str:
    """An option as it is written on a command line."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else canonical_text(value)


def group_variants(records: Sequence[Record]) -> list[Variant]:
    """Groups records of one table into rows: by options, and by recipe if a cell was run with several recipes.

    Methods are in the order of their cards, a method's variants by their options, numbers as numbers.
    """
    by_method: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        by_method[record.method].append(record)
    found: list[Variant] = []
    for method in sorted(by_method, key=method_cards.table_position):
        found += _split_method(method, by_method[method])
    return _tell_apart(found)


def _split_method(method: str, members: Sequence[Record]) -> list[Variant]:
    swept = _is_recipe_swept(members, [_options_of(record, False) for record in members])
    options = [_options_of(record, swept) for record in members]
    differing = _find_differing(options)
    buckets: dict[str, list[Record]] = collections.defaultdict(list)
    whole: dict[str, dict[str, Any]] = {}
    for record, option in zip(members, options, strict=True):
        key = canonical_text({k: option[k] for k in differing if k in option})
        buckets[key].append(record)
        whole.setdefault(key, option)
    usual = recipes.completed(method, {})
    # A preset stands behind what has none: it lacks the options that it sets.
    natural = {key: ("preset" in whole[key], tuple(_sort_key(whole[key].get(k)) for k in differing)) for key in buckets}
    ordered = sorted(buckets, key=lambda key: natural[key])
    labels = _name_variants(method, [whole[key] for key in ordered], differing, usual)
    return [
        Variant(method, number, label, _describe(whole[key], differing, usual), tuple(buckets[key]))
        for number, (key, label) in enumerate(zip(ordered, labels, strict=True))
    ]


def _is_recipe_swept(records: Sequence[Record], options: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a cell was run with several recipes: the same options on the same dataset.

    Args:
        records: Of one method.
        options: Of each record.
    """
    recipes_of: dict[str, set[str]] = collections.defaultdict(set)
    for record, option in zip(records, options, strict=True):
        key = canonical_text([option, record.dataset])
        recipes_of[key].add(canonical_text(stats.comparable_train_config(record)))
    return any(len(several) > 1 for several in recipes_of.values())


def _find_differing(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all of several mappings."""
    keys = sorted({key for option in options for key in option})
    return [key for key in keys if len({canonical_text(option.get(key, _ABSENT)) for option in options}) > 1]


def _name_variants(
    method: str, variants: Sequence[Mapping[str, Any]], differing: Sequence[str], usual: Mapping[str, Any]
) -> list[str]:
    """Names of a method's variants: in words, where these are unique, else with every differing option."""

    def name(options: Mapping[str, Any], full: bool) -> str:
        words = [
            f"{key}={format_option(options[key])}" if full else say_option(key, options[key])
            for key in differing
            if key in options and (full or _is_unusual(key, options[key], usual))
        ]
        return ", ".join([method, *words])

    short = [name(options, False) for options in variants]
    counts = collections.Counter(short)
    return [s if counts[s] == 1 else name(options, True) for s, options in zip(short, variants, strict=True)]


def _tell_apart(variants: Sequence[Variant]) -> list[Variant]:
    """Numbers behind names that are still equal: names of foreign methods and options may be anything."""
    counts = collections.Counter(variant.label for variant in variants)
    taken = {variant.label for variant in variants if counts[variant.label] == 1}
    found = []
    for variant in variants:
        label, number = variant.label, 1
        while label in taken:
            number += 1
            label = f"{variant.label} #{number}"
        if counts[variant.label] > 1:
            taken.add(label)
            found.append(dataclasses.replace(variant, label=label))
        else:
            found.append(variant)
    return found


def name_planned(planned: Sequence[Record], variants: Sequence[Variant]) -> list[str]:
    """For each cell without results the name of the row that it would stand in.

    A cell stands in a row with the same options and, where the cells that ran and these together have several recipes
    for one dataset, the same recipe. Where there is no such row, the name says all that differs between the method's
    cells, and what is not the default if the table has no row of the method.

    Args:
        planned: Cells of one table.
        variants: The rows of that table.
    """
    by_method: dict[str, list[int]] = collections.defaultdict(list)
    for index, record in enumerate(planned):
        by_method[record.method].append(index)
    names = [""] * len(planned)
    for method, places in by_method.items():
        same = [variant for variant in variants if variant.method == method]
        ran = [(record, variant.label) for variant in same for record in variant.records]
        members = [*(record for record, _ in ran), *(planned[index] for index in places)]
        usual = {"search": None} | recipes.completed(method, {})
        swept = _is_recipe_swept(members, [usual | _options_of(record, False) for record in members])
        options = [usual | _options_of(record, swept) for record in members]
        differing = _find_differing(options)
        rows = {canonical_text(option): label for option, (_, label) in zip(options, ran, strict=False)}
        for index, option in zip(places, options[len(ran) :], strict=True):
            unusual = [key for key in option if not key.startswith("train.") and _is_unusual(key, option[key], usual)]
            said = differing if ran else sorted({*differing, *unusual})
            words = [say_option(key, option[key]) if key in option else f"without {key}" for key in said]
            names[index] = rows.get(canonical_text(option)) or ", ".join([method, *words])
    return names


def say_option(key: str, value: Any) -> str:
    """An option in words: ``rank 5``, ``exact``, ``no bias``; ``key=value`` where there are none for it."""
    with_words = VALUES.get((key, value)) if isinstance(value, str | int | float | None) else None
    if with_words is not None:
        return with_words
    text = format_option(value)
    if key in WORDS:
        return WORDS[key].format(text)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{key.removeprefix('train.').replace('_', ' ')} {text}"
    return f"{key}={text}"


def _is_unusual(key: str, value: Any, usual: Mapping[str, Any]) -> bool:
    return key not in usual or canonical_text(usual[key]) != canonical_text(value)


def _describe(options: Mapping[str, Any], differing: Sequence[str], usual: Mapping[str, Any]) -> tuple[str, ...]:
    """Options that are not the method's defaults, or differ within the table."""
    return tuple(
        f"{key}={format_option(value)}"
        for key, value in sorted(options.items())
        if key in differing or (not key.startswith("train.") and _is_unusual(key, value, usual))
    )


_ABSENT = "\0absent"


def _options_of(record: Record, recipe: bool) -> dict[str, Any]:
    search = stats.describe_search(record)
    options = recipes.by_preset(record.method, stats.comparable_method_config(record))
    options |= {"search": search} if search else {}
    return options | {f"train.{k}": v for k, v in stats.comparable_train_config(record).items()} if recipe else options


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Sorts numbers as numbers, before text, after nothing."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))

"""Default recipes: what a cell trains with unless told otherwise.

The schedule is the paper's (AdamW, cosine, 10 + 70 epochs, batch 32, section 4.1), shortened for the mini suite and for
own images. The
paper states no learning rates; each method's card has its own, chosen on ``train800``/``val200`` of the mini tasks and
checked on a pretrained ViT-S, and wider backbones get smaller ones, see docs/recipes.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from s2a_bench.cells import method_cards
from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.config import TrainConfig
from s2a_bench.errors import InputError, unknown

_SCHEDULES: dict[str, dict[str, Any]] = {
    "mini": {"epochs": 12, "warmup_epochs": 1},
    # Trained on machines without a card.
    "real": {"epochs": 8, "warmup_epochs": 1},
    # Own images: usually more than VTAB's 1,000, drawn anew in every epoch by augmentation.
    "own": {"epochs": 30, "warmup_epochs": 3},
}
"""Suite -> what differs from ``TrainConfig``'s defaults."""

_REAL_BACKBONE: dict[str, Any] = {"clip_norm": 1.0}
"""What differs on a backbone that is none of the embedded ones."""


def learning_rates(method: str, backbone: str) -> tuple[float, ...]:
    """A method's default learning rate on a backbone, and behind it those that a search tries.

    As on the card for the embedded backbones, smaller on wider ones (``s2a.card.Recipe.rate_at``).

    Args:
        method: Method name; one that is not installed here gets a card of defaults.
        backbone: timm name, or that of an embedded backbone; one that timm does not know here keeps the card's rates.
    """
    recipe = method_cards.card(method).recipe
    rates = (recipe.learning_rate, *recipe.searched_rates)
    if backbone in MINI_BACKBONES:
        return rates
    from s2a_bench.cells.backbones import width  # torch and timm with it

    known = width(backbone)
    return rates if known is None else tuple(recipe.rate_at(known, rate) for rate in rates)


def train_config(suite: str, method: str, backbone: str, **overrides: Any) -> TrainConfig:
    """The recipe of a cell.

    Args:
        suite: Key of ``datasets.SUITES``.
        method: Method name; one that is not installed here gets the default learning rate.
        backbone: timm name, or that of an embedded backbone.
        **overrides: Fields of ``TrainConfig``, over everything else. A shorter run without a warm-up of its own keeps
            the default's proportion, in whole epochs rounded up, but at most a quarter of its epochs: a rate that is
            right after a warm-up may be too high without one.

    Raises:
        InputError: Not a field of ``TrainConfig``, or a value out of range.
    """
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    for key in overrides:
        if key not in known:
            raise unknown("recipe key", f"train.{key}", [f"train.{name}" for name in known])
    values: dict[str, Any] = {**_SCHEDULES.get(suite, {}), "lr": learning_rates(method, backbone)[0]}
    if backbone not in MINI_BACKBONES:
        values |= _REAL_BACKBONE
    if "epochs" in overrides and "warmup_epochs" not in overrides:
        base = TrainConfig(**values)
        if type(epochs := overrides["epochs"]) is not int:
            raise InputError(f"train.epochs={epochs!r} is not a number of epochs.")
        share = -(-base.warmup_epochs * epochs // base.epochs)
        values["warmup_epochs"] = max(0, min(share, epochs // 4))
    try:
        return TrainConfig(**{**values, **overrides})
    except TypeError as error:
        raise InputError(f"The recipe {overrides} has a value of the wrong type ({error}).") from error


def completed(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A record's method config with the defaults of what it leaves out: of options that came later, for example.

    Args:
        method: Registered name; of one that is not installed here nothing is known.
        options: ``Record.method_config``.
    """
    import s2a  # torch with it, which labels need for nothing else

    try:
        usual = dataclasses.asdict(s2a.method_config(method))
    except s2a.S2AError:
        return dict(options)
    return usual | as_recorded(method, options)


def as_recorded(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A record's method config, which leaves out what was the default when it was made, with those that are others now.

    Args:
        method: Registered name.
        options: ``Record.method_config``.
    """
    import s2a

    usual, found = s2a.method_config(method), dict(options)
    for field in dataclasses.fields(usual):
        other, _, value = field.metadata.get("changed_with", "").partition("=")
        if not other:
            continue
        if options.get(other, getattr(usual, other)) == value:
            found.setdefault(field.name, field.metadata["former"])
        else:  # It has no effect there, whatever it was.
            found.pop(field.name, None)
    return found


def by_preset(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A record's method config with ``preset`` in the place of the options that one of the method's presets sets.

    Args:
        method: Registered name; the options of one that is not installed here stay as they are.
        options: ``Record.method_config``.
    """
    from s2a.errors import S2AError
    from s2a.registry import presets_of

    try:
        presets = presets_of(method)
    except S2AError:
        return dict(options)
    for name, values in presets.items():
        if values and all(_same(options.get(key), value) for key, value in values.items()):
            return {"preset": name} | {key: value for key, value in options.items() if key not in values}
    return dict(options)


def _same(one: Any, other: Any) -> bool:
    """Whether two values of an option are one in a record, where a tuple is a list."""
    return json.dumps(one, default=str) == json.dumps(other, default=str)


def changes(suite: str, method: str, backbone: str, train: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe is not the default: what was set, swept or searched.

    Args:
        suite: Key of ``datasets.SUITES``.
        method: Registered method name.
        backbone: Its name.
        train: Fields of a ``TrainConfig``. A warm-up that follows from the number of epochs is none of the changes.
    """
    usual = dataclasses.asdict(train_config(suite, method, backbone))
    scaled = usual
    if "epochs" in train:
        scaled = dataclasses.asdict(train_config(suite, method, backbone, epochs=train["epochs"]))
    return {
        key: value for key, value in train.items() if value != (scaled if key == "warmup_epochs" else usual).get(key)
    }


def spoken(changed: Mapping[str, Any]) -> list[str]:
    """``train.lr=0.002`` for each of ``changes``."""
    return [
        f"train.{key}={value:g}" if isinstance(value, float) else f"train.{key}={value}"
        for key, value in changed.items()
    ]

"""What a search tries: a space per method, made from its card, of one size for all.

Every grid has ``GRID`` points: six learning rates and two weight decays, or, where a method has a scale, three learning
rates a decade apart, two decays and two scales. Every grid holds the method's default recipe; on wider backbones all
rates are smaller by the same factor as the default (``recipes.learning_rates``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from typing import Any

from s2a_bench.cells import method_cards, recipes
from s2a_bench.errors import InputError

GRID = 12
"""Trials of the whole grid, the same for every method."""

DRAWS = "s2a-bench search 1"
"""The fixed seed of random draws."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One searched key.

    Attributes:
        key: As in ``--set``: ``train.lr``, ``method.scale``.
        values: Of the grid, ascending; ``None`` is the method's own default.
        logarithmic: Random draws are log-uniform between the ends; otherwise they are among the values.
    """

    key: str
    values: tuple[Any, ...]
    logarithmic: bool = False

    def at(self, quantile: float) -> Any:
        """The value at a quantile in [0, 1); numbers are rounded to three digits, so that they can be typed."""
        if not self.logarithmic:
            return self.values[int(quantile * len(self.values))]
        low, high = self.values[0], self.values[-1]
        return float(f"{math.exp(math.log(low) + quantile * math.log(high / low)):.3g}")


Space = tuple[Axis, ...]

_DECAY = Axis("train.weight_decay", (1e-4, 5e-2), logarithmic=True)


def get(method: str, backbone: str) -> Space:
    """The space of a method on a backbone, from its card: an option if it searches one, weight decay, learning rate.

    Raises:
        InputError: It has another size than those of the other methods, which would give them unequal budgets.
    """
    recipe = method_cards.card(method).recipe
    option = recipe.searched_option
    space = (
        *([Axis(f"method.{option[0]}", option[1])] if option else []),
        _DECAY,
        Axis("train.lr", recipes.learning_rates(method, backbone)[1:], logarithmic=True),
    )
    if (size := math.prod(len(axis.values) for axis in space)) != GRID:
        raise InputError(
            f"The search space of method {method!r} has {size} points, but every method is searched with {GRID}; "
            f"its card must list {GRID // 2} learning rates, or fewer times the values of one option."
        )
    return space


def grid(space: Space) -> list[dict[str, Any]]:
    """Every point of a space, by key; the last axis, the learning rate, moves fastest."""
    keys = [axis.key for axis in space]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in space))]


def draws(space: Space, count: int) -> list[dict[str, Any]]:
    """Random points of a space, independent of each other, the same on every machine.

    A draw lies at the same quantiles of every method's space, and the first draws of a longer search are those of a
    shorter one.
    """
    return [{axis.key: axis.at(_quantile(index, axis.key)) for axis in space} for index in range(count)]


def _quantile(index: int, key: str) -> float:
    """Uniform in [0, 1); all method scales share their draws."""
    name = key if key.startswith("train.") else "method"
    digest = hashlib.sha256(f"{DRAWS} {index} {name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

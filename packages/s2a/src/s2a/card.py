"""What a method's file says about the method: for its user, its default recipe, and how tables and figures show it.

Plain data, so that it can be written beside the method; a harness reads it and needs no table of names of its own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from s2a.errors import S2AError

SHAPES = ("circle", "square", "diamond", "pentagon", "hexagon", "up", "down", "left", "right", "star", "plus")
"""Marker shapes; ``up``, ``down``, ``left`` and ``right`` are triangles that point there."""


REFERENCE_WIDTH = 128
"""Width of the backbones on which the cards' learning rates were chosen (their last stage's channels; up to this)."""


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a method is trained unless its user says otherwise, and what a search over its settings tries.

    The number of epochs, the schedule and the weight decay are the harness's, the same for all methods. Rates are those
    of a backbone up to ``REFERENCE_WIDTH`` wide; ``rate_at`` has those of wider ones.

    Attributes:
        learning_rate: Default peak learning rate of AdamW.
        searched_rates: Learning rates that a search tries, ascending, the default among them.
        searched_option: Name of one option of the config that a search varies too, and its values, the config's default
            among them; ``None``: no option is searched.
        width_power: How the rates fall with a backbone's width, see ``rate_at``; 0: they stay.

    Raises:
        S2AError: A rate that is not a positive number, a power that is negative or no number, rates that do not ascend,
            or a default that is not among them.
    """

    learning_rate: float = 1e-3
    searched_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    searched_option: tuple[str, tuple[Any, ...]] | None = None
    width_power: float = 1.0

    def __post_init__(self) -> None:
        for rate in (self.learning_rate, *self.searched_rates):
            if not _is_number(rate) or rate <= 0:
                raise S2AError(f"Learning rate {rate!r} must be a number above 0.")
        if not _is_number(self.width_power) or self.width_power < 0:
            raise S2AError(f"width_power {self.width_power!r} must be a number of at least 0.")
        if sorted(set(self.searched_rates)) != list(self.searched_rates):
            raise S2AError(f"searched_rates={self.searched_rates} must ascend without repeats.")
        if self.learning_rate not in self.searched_rates:
            raise S2AError(
                f"learning_rate={self.learning_rate} is not among searched_rates={self.searched_rates}; add it, so "
                "that a search also tries the default."
            )

    def rate_at(self, width: int, rate: float | None = None) -> float:
        """A rate of this recipe on a backbone of another width: ``rate * min(1, 128 / width) ** power``, two digits.

        Under Adam every weight moves by about the rate at each step, whatever its gradient, so that an output that sums
        over ``width`` inputs moves in proportion to ``rate * width``. The rate of matrices must therefore fall as
        ``1 / width``, a power of 1 (Yang et al., "Tensor Programs V", 2022, table 3). Narrow backbones keep the rate,
        which was chosen on such ones.

        Args:
            width: Channels of the backbone's last stage: timm's ``num_features``.
            rate: One of ``searched_rates``; ``None``: the default.
        """
        rate = self.learning_rate if rate is None else rate
        return float(f"{rate * min(1.0, REFERENCE_WIDTH / width) ** self.width_power:.2g}")


@dataclasses.dataclass(frozen=True)
class Style:
    """A method's marker in figures and tables.

    Attributes:
        light: Colour on a light page, ``#rrggbb``.
        dark: Colour on a dark page, ``#rrggbb``.
        shape: One of ``SHAPES``.

    Raises:
        S2AError: A colour of another form, or an unknown shape.
    """

    light: str
    dark: str
    shape: str

    def __post_init__(self) -> None:
        for colour in (self.light, self.dark):
            if not isinstance(colour, str) or not re.fullmatch("#[0-9a-f]{6}", colour):
                raise S2AError(f"Colour {colour!r} must have the form #rrggbb, in lower case.")
        if self.shape not in SHAPES:
            raise S2AError(f"Shape {self.shape!r} is unknown; choose one of {', '.join(SHAPES)}.")


@dataclasses.dataclass(frozen=True)
class Card:
    """What to know of a method. ``s2a-bench methods`` prints the texts, a sentence or two each.

    Attributes:
        title: The method's name for people, as in the literature.
        trains: What trains.
        place: Where it sits in the backbone.
        count: Trainable values without the head, as an equation in N, C, r and the like.
        keeps: What the backward pass keeps for it.
        inference: What it costs once trained, and whether it can be merged.
        source: Publication and the code it follows.
        evidence: What supports the configuration: as published, or *fitted* or *weak* against the S2A paper's tables.
        deviations: What differs from the source, and why.
        recipe: Default training values and what a search tries.
        style: Colour and shape in figures; ``None``: the harness picks one by the method's name.
        order: Place in tables, ascending; equals are sorted by name. The default is behind the methods of this project.
        compared_by_default: Whether a comparison that names no methods includes this one.
        step_time: Rough time of a training step in units of a typical method's. The longest runs are started first.
    """

    title: str
    trains: str
    place: str
    count: str
    keeps: str
    inference: str
    source: str
    evidence: str = "As published."
    deviations: str = "None."
    recipe: Recipe = Recipe()
    style: Style | None = None
    order: int = 1000
    compared_by_default: bool = False
    step_time: float = 1.0

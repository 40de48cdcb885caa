"""Which random views of the training images a cell draws, by name. Without torch; ``views.py`` draws them.

===================  ==================================================================================================
``default``          the suite's view: ``none`` where images are resized to a square, ``crop`` elsewhere
``none``             the view that is scored, in training too
``crop``             short side to 8/7 of the size, random crop, mirror
``resized-crop``     a random part of 35 to 100 % of the area of that, resized, mirror
``rand-mM-nN``       resized crop, mirror, and N of timm's RandAugment operations at magnitude M; ``rand``: M 7, N 2
===================  ==================================================================================================
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from s2a_bench.config import DataConfig
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import InputError

SCALE = (0.35, 1.0)
"""Smallest and largest part of the area that a random resized crop takes; torchvision's and timm's ``scale``."""

_RAND = re.compile(r"rand(?:-m(\d{1,2}))?(?:-n(\d{1,2}))?")
_MAGNITUDE, _OPERATIONS = 7, 2


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random views of training images.

    Attributes:
        name: ``"none"``, ``"crop"``, ``"resized-crop"`` or ``"rand-m7-n2"``.
        mirror: Whether images are mirrored left to right with probability 1/2.
    """

    name: str = "crop"
    mirror: bool = True

    @property
    def policy(self) -> str | None:
        """Timm's name of the RandAugment policy, whose operations grow stronger with the magnitude; ``None``: none."""
        return f"{self.name}-mstd0.5-inc1" if self.name.startswith("rand") else None

    @property
    def text(self) -> str:
        """What is done, in words."""
        if self.name == "none":
            return "none"
        resized = f"random resized crop of {SCALE[0] * 100:g} to {SCALE[1] * 100:g} % of the area"
        parts = ["random crop" if self.name == "crop" else resized]
        parts += ["mirror"] * self.mirror
        if self.policy is not None:
            parts.append(f"timm's RandAugment {self.policy}")
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


NO_AUGMENTATION = Augmentation("none", mirror=False)


def parse(name: str) -> str:
    """The full name of an augmentation: ``rand-m7-n2`` for ``rand``.

    Raises:
        InputError: There is none of that name.
    """
    if name in ("default", "none", "crop", "resized-crop"):
        return name
    found = _RAND.fullmatch(name) if isinstance(name, str) else None
    if found is not None:
        magnitude, operations = int(found[1] or _MAGNITUDE), int(found[2] or _OPERATIONS)
        if magnitude <= 10 and 1 <= operations <= 10:
            return f"rand-m{magnitude}-n{operations}"
    raise InputError(
        f"data.augment={name!r} is unknown; choose default (the suite's own), none, crop, resized-crop, rand, or "
        "rand-mM-nN with a magnitude M from 0 to 10 and N from 1 to 10 operations, such as rand-m7-n2."
    )


def resolve(config: DataConfig) -> Augmentation:
    """What a cell draws.

    Raises:
        InputError: An unknown suite or augmentation, or a ``mirror`` that is no switch.
    """
    if not isinstance(config.mirror, bool):
        raise InputError(f"data.mirror={config.mirror!r} is no switch; give true or false.")
    name = parse(config.augment)
    if name == "default":
        name = "crop" if datasets.get_suite(config.suite).view == "crop" else "none"
    return NO_AUGMENTATION if name == "none" else Augmentation(name, config.mirror)


def changes(config: DataConfig) -> dict[str, Any]:
    """``augment`` and ``mirror`` of a cell where they are not the suite's own: what identifies the cell besides.

    Two names of the same views give the same.
    """
    asked, usual = resolve(config), resolve(DataConfig(config.suite))
    found: dict[str, Any] = {}
    if asked.name != usual.name:
        found["augment"] = asked.name
    if asked.name != "none" and not asked.mirror:
        found["mirror"] = False
    return found


def describe(config: DataConfig) -> dict[str, Any]:
    """The same for ``Record.data_config``, with the words of what was done; the words alone for the suite's own."""
    asked, changed = resolve(config), changes(config)
    if not changed:
        return {} if asked.name == "none" else {"augment": asked.text}
    return {"augment": asked.name, "mirror": asked.mirror, "augmentation": asked.text}


def from_record(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``DataConfig`` that a record's ``data_config`` was made with."""
    if "augmentation" not in data_config:
        return {}
    return {"augment": data_config.get("augment"), "mirror": data_config.get("mirror", True)}


def spoken(changed: Mapping[str, Any]) -> list[str]:
    """``data.augment=rand-m7-n2``, ``data.mirror=false`` for each of ``changes``; mirrors are not spoken of."""
    return [f"data.{key}={str(value).lower()}" for key, value in changed.items() if value is not True]

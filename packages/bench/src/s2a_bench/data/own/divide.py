"""Draws validation and test images: by class, groups in one part, the same on every machine.

Groups are put in an order that ``sha256("s2a own <seed> <name>")`` fixes. Let ``r_c`` be how many images of class ``c``
a part still lacks of its share (fraction times the images of the class), and ``s_c`` how many a group has.

1. For each class, those with the fewest groups first, the part gets one group with images of it, so that no class is
   without any.
2. Then groups are gone through in that order and taken where they bring the part nearer to its shares:
   ``sum_c (r_c - s_c)^2 < sum_c r_c^2``.

A part that consists of groups of one class each is off its share of a class by at most the largest group of it. Train
keeps two images of every class at least.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

KEPT = 2
"""Images of every class that train keeps at least."""


@dataclasses.dataclass(frozen=True)
class Undrawn:
    """A class of which a part could get no image.

    Attributes:
        label: The class.
        part: The part.
        images: How many the class has.
        groups: In how many groups.
        largest: Images of it in the largest of them.
    """

    label: int
    part: str
    images: int
    groups: int
    largest: int


def draw_parts(
    names: Sequence[str], labels: Sequence[int], groups: Sequence[int], fractions: Mapping[str, float], seed: int
) -> tuple[list[str], list[Undrawn]]:
    """Divides images into ``"train"`` and the parts to draw.

    Args:
        names: Of the images, all different; with the seed they decide the order.
        labels: Class of each.
        groups: Group of each; images of one group get one part.
        fractions: Share of each part to draw, more than 0 and together less than 1.
        seed: Of the draw.

    Returns:
        The part of each image, and the classes of which a part could get none: if there are any, the division is none.
    """
    draw = _Draw(names, labels, groups, fractions, seed)
    undrawn = [missing for part in fractions for missing in draw.cover(part)]
    if not undrawn:
        for part in fractions:
            draw.fill(part)
    return [draw.part.get(group, "train") for group in groups], undrawn


class _Draw:
    """A division in the making: groups that are in no part yet are train's.

    Attributes:
        part: Part of each group that was drawn.
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: Sequence[int],
        groups: Sequence[int],
        fractions: Mapping[str, float],
        seed: int,
    ) -> None:
        self.part: dict[int, str] = {}
        self._sizes: dict[int, Counter[int]] = defaultdict(Counter)  # images by class, per group
        key: dict[int, str] = {}
        for name, label, group in zip(names, labels, groups, strict=True):
            self._sizes[group][label] += 1
            digest = hashlib.sha256(f"s2a own {seed} {name}".encode()).hexdigest()
            key[group] = min(key.get(group, digest), digest)
        self._order = sorted(self._sizes, key=lambda group: key[group])
        self._of_class: dict[int, list[int]] = defaultdict(list)  # groups in that order, per class
        for group in self._order:
            for label in self._sizes[group]:
                self._of_class[label].append(group)
        self._images = Counter(labels)
        # What train has left of each class, in images and in groups.
        self._left = Counter(labels)
        self._left_groups = {label: len(found) for label, found in self._of_class.items()}
        self._lacking = {part: {c: share * n for c, n in self._images.items()} for part, share in fractions.items()}
        self._uncovered = {part: set(self._images) for part in fractions}
        self._waiting = Counter({label: len(fractions) for label in self._images})  # parts without an image of it

    def cover(self, part: str) -> list[Undrawn]:
        """Step 1; returns the classes that have no group to spare."""
        undrawn = []
        for label in sorted(self._images, key=lambda c: (len(self._of_class[c]), c)):
            if label not in self._uncovered[part]:
                continue
            free = [group for group in self._of_class[label] if group not in self.part and self._is_spare(group, part)]
            if not free:
                sizes = [self._sizes[group][label] for group in self._of_class[label]]
                undrawn.append(Undrawn(label, part, self._images[label], len(sizes), max(sizes)))
                continue
            # The first in the order that is not too large, else the one that is least so.
            fitting = next((group for group in free if self._gain(group, part) < 0), None)
            self._take(fitting if fitting is not None else min(free, key=lambda g: self._gain(g, part)), part)
        return undrawn

    def fill(self, part: str) -> None:
        """Step 2."""
        for group in self._order:
            if group not in self.part and self._gain(group, part) < 0 and self._is_spare(group, part):
                self._take(group, part)

    def _gain(self, group: int, part: str) -> float:
        """By how much the squared distance from the shares grows: ``sum_c s_c (s_c - 2 r_c)``."""
        lacking = self._lacking[part]
        return sum(size * (size - 2 * lacking[label]) for label, size in self._sizes[group].items())

    def _is_spare(self, group: int, part: str) -> bool:
        """Whether train, and the parts that still need one, can do without the group."""
        for label, size in self._sizes[group].items():
            waiting = self._waiting[label] - (label in self._uncovered[part])
            if self._left[label] - size < waiting + KEPT or self._left_groups[label] - 1 < waiting + 1:
                return False
        return True

    def _take(self, group: int, part: str) -> None:
        self.part[group] = part
        for label, size in self._sizes[group].items():
            self._left[label] -= size
            self._left_groups[label] -= 1
            self._lacking[part][label] -= size
            if label in self._uncovered[part]:
                self._uncovered[part].remove(label)
                self._waiting[label] -= 1

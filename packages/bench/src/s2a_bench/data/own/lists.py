"""Divides own images into lists: the parts that the source gives, those that are drawn, and what is kept together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from s2a_bench.data.own.divide import Undrawn, draw_parts
from s2a_bench.data.own.duplicates import Groups, group_near_duplicates
from s2a_bench.data.own.inspect import Look
from s2a_bench.data.own.options import OwnOptions
from s2a_bench.data.own.read import OwnImage, OwnSource, count_images, name_some
from s2a_bench.errors import InputError

PARTS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Division:
    """The three parts of a dataset.

    Attributes:
        parts: Names of images per part, in the source's order.
        drawn: Parts that were drawn.
        near_duplicates: How many groups of them there are and how many images are in these; ``None``: not looked for.
        notes: What the user should know, in sentences.
        rule: How the drawn parts came about, in a sentence.
    """

    parts: Mapping[str, tuple[str, ...]]
    drawn: tuple[str, ...]
    near_duplicates: Mapping[str, Any] | None
    notes: tuple[str, ...]
    rule: str

    def describe(self, skipped: Sequence[object]) -> str:
        """What a reader of results must know."""
        left_out = f" {count_images(len(skipped))} that cannot be used were left out." if skipped else ""
        return f"Own images. {self.rule}{left_out}"


def find_drawn(source: OwnSource, options: OwnOptions) -> tuple[str, ...]:
    """The parts that have to be drawn: those that the source does not give and whose fraction is not 0."""
    return tuple(part for part in ("val", "test") if part not in source.given and getattr(options, part) > 0)


def divide_images(
    source: OwnSource, looks: Mapping[str, Look], drawn: tuple[str, ...], options: OwnOptions
) -> Division:
    """Divides images into train, val and test.

    Args:
        source: The images.
        looks: What is known of each.
        drawn: Parts to draw.
        options: Fractions, seed, and what is kept together.

    Raises:
        InputError: So many images must stay together that a part would be without a class.
    """
    images = source.images
    groups = Groups(len(images))
    together = [image.group for image in images]
    groups.join_equal(together)
    alike: list[int] | None = None
    if options.near_duplicates:
        alike = group_near_duplicates(
            [looks[image.name].sha256 for image in images], [looks[image.name].hash for image in images]
        )
        for i, first in enumerate(alike):
            groups.join(first, i)
    labels = {name: label for label, name in enumerate(source.classes)}
    pool = [i for i, image in enumerate(images) if image.part in (None, "train")]
    parts = [image.part or "train" for image in images]
    if drawn:
        joined = groups.labels()
        found, undrawn = draw_parts(
            [images[i].name for i in pool],
            [labels[images[i].label] for i in pool],
            [joined[i] for i in pool],
            {part: getattr(options, part) for part in drawn},
            options.seed,
        )
        if undrawn:
            raise InputError(_explain_undrawn(source, undrawn, options))
        for i, part in zip(pool, found, strict=True):
            parts[i] = part
    notes, counted = [], None
    if alike is not None:
        counted, notes = _describe_alike(images, alike, parts)
    if options.group_column is not None and (note := _describe_torn(together, parts, options.group_column)):
        notes.append(note)
    return Division(
        parts={
            part: tuple(image.name for image, own in zip(images, parts, strict=True) if own == part) for part in PARTS
        },
        drawn=drawn,
        near_duplicates=counted,
        notes=tuple(notes),
        rule=_describe_rule(source, drawn, options, counted),
    )


def _describe_rule(
    source: OwnSource, drawn: tuple[str, ...], options: OwnOptions, counted: Mapping[str, int] | None
) -> str:
    if not drawn:
        return "The parts are those of the source."
    given = "the train part" if source.given else "the images"
    shares = " and ".join(f"{part} ({getattr(options, part):g} of each class)" for part in drawn)
    kept = []
    if counted is not None:
        kept.append(f"near-duplicates ({count_images(counted['images'])} in {counted['groups']} groups)")
    if options.group_column is not None:
        kept.append(f"images of one {options.group_column!r}")
    together = f"; {' and '.join(kept)} are in one part" if kept else ""
    return f"Drawn from {given} with seed {options.seed}: {shares}{together}."


def _describe_alike(
    images: Sequence[OwnImage], alike: Sequence[int], parts: Sequence[str]
) -> tuple[dict[str, int], list[str]]:
    """How many near-duplicates there are, and notes of what they mean."""
    size = Counter(alike)
    members: dict[int, list[int]] = {}
    for i, first in enumerate(alike):
        if size[first] > 1:
            members.setdefault(first, []).append(i)
    counted = {"groups": len(members), "images": sum(map(len, members.values()))}
    notes = []
    if members:
        largest = max(members.values(), key=len)
        shown = name_some([images[i].name for i in largest])
        notes.append(
            f"{counted['images']:,} images are the same as others or look the same, in {counted['groups']:,} groups "
            "(the "
            f"largest: {shown}); images of a group that is drawn stay in one part."
        )
    mixed = [found for found in members.values() if len({images[i].label for i in found}) > 1]
    if mixed:
        notes.append(
            f"{len(mixed)} groups of images that look the same have several classes "
            f"({name_some([_pair(images, found, [images[i].label for i in found]) for found in mixed])}); look whether "
            "their labels are right."
        )
    torn = [found for found in members.values() if len({parts[i] for i in found}) > 1]
    if torn:
        notes.append(
            f"{len(torn)} groups of images that look the same are in several parts, since the source puts them there "
            f"({name_some([_pair(images, found, [parts[i] for i in found]) for found in torn])}); scores on them will "
            "be "
            "too good."
        )
    return counted, notes


def _pair(images: Sequence[OwnImage], group: Sequence[int], values: Sequence[str]) -> str:
    """The first image of a group and the first that differs from it in a value."""
    other = next(k for k, value in enumerate(values) if value != values[0])
    return f"{images[group[0]].name} ({values[0]}) and {images[group[other]].name} ({values[other]})"


def _describe_torn(together: Sequence[str | None], parts: Sequence[str], column: str) -> str:
    """A note of groups that the source's own parts tear apart, or ``""``."""
    where: dict[str, set[str]] = {}
    for group, part in zip(together, parts, strict=True):
        if group is not None:
            where.setdefault(group, set()).add(part)
    torn = [group for group, found in where.items() if len(found) > 1]
    if not torn:
        return ""
    return (
        f"{len(torn)} values of column {column!r} are in several parts, since the source puts them there "
        f"({name_some(torn)}); scores on them will be too good."
    )


def _explain_undrawn(source: OwnSource, undrawn: Sequence[Undrawn], options: OwnOptions) -> str:
    first = undrawn[0]
    more = f" (and {len(undrawn) - 1} more)" if len(undrawn) > 1 else ""
    reasons, ways = [], []
    if options.group_column is not None:
        reasons.append(f"by column {options.group_column!r}")
        ways.append("group by a column of more values")
    if options.near_duplicates:
        reasons.append("because they look the same")
        ways.append("pass --no-near-duplicates")
    ways += ["add images", f"draw no {first.part} part with --{first.part} 0"]
    return (
        f"The {first.part} part would be without class {source.classes[first.label]!r}{more}: its {first.images} "
        "images "
        f"are in {first.groups} groups that stay together {' or '.join(reasons)}, the largest of {first.largest}, and "
        "too "
        f"few are left for train; {', or '.join(ways)}."
    )

"""What own images must be like before anything is written, and what is worth knowing about them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from s2a_bench.data.open_source import check_name
from s2a_bench.data.own.divide import KEPT
from s2a_bench.data.own.inspect import Look
from s2a_bench.data.own.options import OwnOptions
from s2a_bench.data.own.read import SHOWN, OwnSource, count_images, find_lookalikes, name_some
from s2a_bench.data.table.own import check_class_names
from s2a_bench.errors import InputError, Mistakes

_MOST_CONTRADICTIONS = 0.01
"""Share of images that may lie in several classes by mistake; more of them are no mistake."""
_SHOWN_FAULTS = 10
"""Images whose faults are told one by one; the rest is counted."""


def check_listing(source: OwnSource, drawn: tuple[str, ...], options: OwnOptions) -> None:
    """Checks classes and parts, without a look at the images.

    Args:
        source: The images.
        drawn: Parts that will be drawn.
        options: Those given.

    Raises:
        InputError: One class only, a class in val or test that train lacks, too few images of a class for the parts to
            draw, nothing to score, or names that lists cannot hold; several mistakes together.
    """
    mistakes = Mistakes()
    place = source.place
    if len(source.classes) < 2:
        held = f"one class only, {name_some(source.classes)}" if source.classes else "no class"
        mistakes.add(InputError(f"{place} holds {held}; at least two are needed to tell them apart."))
    with mistakes.collecting():
        check_class_names(source.classes, place)
    train = Counter(image.label for image in source.images if image.part in (None, "train"))
    for part in ("val", "test"):
        lacking = sorted({image.label for image in source.images if image.part == part} - set(train))
        if lacking:
            mistakes.add(
                InputError(
                    f"The {part} part of {place} has {_classes(len(lacking))} that train lacks ({name_some(lacking)}); "
                    "put images of each into train, or take them out."
                )
            )
    needed = KEPT + len(drawn) if drawn else 1
    few = [name for name in source.classes if train[name] < needed and (train[name] or not source.given)]
    if few:
        counts = name_some([f"{name} has {train[name]}" for name in few])
        flags = " or ".join(f"--{part} 0" for part in drawn)
        less = f", or draw fewer parts with {flags}" if drawn else ""
        parts = " and ".join(drawn)
        mistakes.add(
            InputError(
                f"{_classes(len(few)).capitalize()} of {place} {'have' if len(few) > 1 else 'has'} fewer than "
                f"{count_images(needed)} to train on{f' and to draw {parts} from' if drawn else ''} ({counts}); add "
                f"images, or leave {'these classes' if len(few) > 1 else 'the class'} out{less}."
            )
        )
    if not drawn and not source.given - {"train"}:
        mistakes.add(
            InputError(f"--val {options.val:g} and --test {options.test:g} leave no image to score; draw one of them.")
        )
    _check_names(source, mistakes)
    mistakes.raise_all()


def _check_names(source: OwnSource, mistakes: Mistakes) -> None:
    bad = 0
    for image in source.images:
        try:
            check_name(source.place, image.name)
        except InputError as error:
            mistakes.add(error)
            bad += 1
            if bad == SHOWN:
                return


def _classes(number: int) -> str:
    return f"{number} class{'es' * (number != 1)}"


def drop_faulty(
    source: OwnSource, looks: Mapping[str, Look], options: OwnOptions
) -> tuple[OwnSource, list[dict[str, str]]]:
    """Refuses images that cannot be used, or leaves them out.

    Args:
        source: The images.
        looks: What is known of each.
        options: Say which of both.

    Returns:
        The images without them, and for each of them ``{"image": name, "why": sentence, "sha256": hash or ""}``.

    Raises:
        InputError: Some cannot be used, and they are not to be left out; one sentence for each of the first.
    """
    skipped = [
        {
            "image": name,
            "why": f"Image {name} is of a format that is not read here; convert it to JPEG or PNG.",
            "sha256": "",
        }
        for name in source.unread
    ]
    skipped += [
        {"image": look.name, "why": look.fault, "sha256": look.sha256}
        for look in (looks[image.name] for image in source.images)
        if look.fault
    ]
    if skipped and not options.skip_unreadable:
        mistakes = Mistakes()
        for each in skipped[:_SHOWN_FAULTS]:
            mistakes.add(InputError(each["why"]))
        more = f" (the first {_SHOWN_FAULTS} are named)" if len(skipped) > _SHOWN_FAULTS else ""
        mistakes.add(
            InputError(
                f"{count_images(len(skipped))} of {source.place} cannot be used{more}: repair or delete them, or pass "
                "--skip-unreadable to leave them out."
            )
        )
        mistakes.raise_all()
    out = {each["image"] for each in skipped}
    images = tuple(image for image in source.images if image.name not in out)
    notes = source.notes
    if skipped:
        notes = (*notes, f"{count_images(len(skipped))} that cannot be used are left out ({name_some(sorted(out))}).")
    return dataclasses.replace(source, images=images, unread={}, notes=notes), skipped


def check_images(source: OwnSource, looks: Mapping[str, Look]) -> list[str]:
    """Refuses images that are of several classes at once; returns notes, in sentences.

    Args:
        source: Images that can be used.
        looks: What is known of each.

    Raises:
        InputError: More files than can be mistakes are in several classes.
    """
    notes = []
    for several in find_lookalikes(source.classes):
        notes.append(
            f"Classes {name_some([repr(name) for name in several], 5)} differ only in case, spaces or encoding; they "
            "are "
            "taken as different ones."
        )
    classes: dict[str, dict[str, str]] = {}
    for image in source.images:
        classes.setdefault(looks[image.name].sha256, {}).setdefault(image.label, image.name)
    several = [found for found in classes.values() if len(found) > 1]
    if several:
        shown = name_some([" = ".join(found.values()) for found in several])
        count = (
            f"{count_images(len(several))} of {source.place} {'are' if len(several) > 1 else 'is'} in several classes"
        )
        if len(several) > _MOST_CONTRADICTIONS * len(source.images):
            raise InputError(
                f"{count}, with the same content ({shown}); one class per image is all that can be learned here, so "
                "keep "
                "each in one."
            )
        notes.append(f"{count}, with the same content ({shown}); look which is right.")
    return notes

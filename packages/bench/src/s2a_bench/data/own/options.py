"""What can be said about own images besides where they are."""

from __future__ import annotations

import dataclasses
import math

from s2a_bench.errors import InputError, Mistakes


@dataclasses.dataclass(frozen=True)
class OwnOptions:
    """How own images are read and divided.

    Attributes:
        val: Fraction of each class that becomes the validation part, where the source has none; 0: none is drawn.
        test: The same of the test part.
        seed: Of the draw.
        group_column: Column of a table; images with the same value in it (of one patient, say) stay in one part.
        path_column: Column of a table with the images' paths; ``None``: found by its name.
        label_column: Column with the class names; ``None``: found by its name.
        split_column: Column with ``train``, ``val`` or ``test``; ``None``: one called split, if there is any.
        near_duplicates: Whether images that look the same stay in one part.
        skip_unreadable: Whether images that cannot be used are left out; otherwise they are an error.
        in_place: Whether images that lie in a folder are used there instead of copied.
    """

    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    group_column: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    near_duplicates: bool = True
    skip_unreadable: bool = False
    in_place: bool = False


def check_options(options: OwnOptions) -> None:
    """Refuses fractions and seeds that mean nothing.

    Raises:
        InputError: All of what is wrong.
    """
    mistakes = Mistakes()
    for flag, value in (("--val", options.val), ("--test", options.test)):
        if not (math.isfinite(value) and 0 <= value < 1):
            mistakes.add(InputError(f"{flag} {value:g} is no fraction; give 0 or more and less than 1, such as 0.1."))
    if not mistakes and options.val + options.test >= 1:
        mistakes.add(
            InputError(
                f"--val {options.val:g} and --test {options.test:g} leave nothing to train on; their sum must be less "
                "than 1."
            )
        )
    if options.seed < 0:
        mistakes.add(InputError(f"--seed {options.seed} is negative; give 0 or more."))
    mistakes.raise_all()

"""The largest batch whose peak is within a budget, with few evaluations of the peak.

The peak is nearly affine in the batch: weights, gradients and optimiser state, and so many bytes per image. Not quite:
storages are rounded up to 512 bytes, chunks of images vary in size, and another phase of the step may come to hold the
peak. So the root of peak(b) = budget is found by the secant method inside a bracket (regula falsi), which bisection
takes over where it does not close in, and the answer is only given when peak(b) and peak(b + 1) were both evaluated:

    peak(b) <= budget < peak(b + 1)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

MOST_IMAGES = 1 << 17
"""Batches above this are not looked at: the answer is then "at least" this."""

FIRST_GUESS = 64
"""Images of the first evaluation."""

SECANTS = 4
"""Evaluations after which every other one is a bisection (or doubles the batch)."""


@dataclasses.dataclass(frozen=True)
class Largest:
    """What ``largest_batch`` found.

    Attributes:
        batch: The largest batch that fits; 0 where not even one image does.
        at_least: ``most`` images fit, and more were not tried.
        peaks: Batch -> bytes, of every batch that was evaluated.
    """

    batch: int
    at_least: bool
    peaks: dict[int, int]


def largest_batch(
    peak: Callable[[int], int],
    budget: int,
    *,
    guess: int = FIRST_GUESS,
    per_image: Callable[[], float] | None = None,
    most: int = MOST_IMAGES,
    fitting: int = 0,
) -> Largest:
    """The largest batch that fits: it does, and one image more does not.

    Args:
        peak: Batch size to bytes.
        budget: Bytes.
        guess: Batch that is tried first.
        per_image: After the first evaluation: about how many bytes an image takes; ``None``: nothing is known.
        most: Largest batch to look at.
        fitting: A batch that is known to fit.
    """
    peaks: dict[int, int] = {}
    low, high = fitting, most + 1  # ``low`` fits; ``high`` does not, or is one more than may be.
    batch = min(max(guess, 1), most)
    while True:
        peaks[batch] = peak(batch)
        if peaks[batch] <= budget:
            low = batch
        else:
            high = batch
        if high - low == 1:
            return Largest(low, low == most, peaks)
        batch = _next(peaks, budget, low, high, per_image)


def _next(peaks: dict[int, int], budget: int, low: int, high: int, per_image: Callable[[], float] | None) -> int:
    """The batch to evaluate next, strictly between ``low`` and ``high``."""
    # 1. A step that halves what is open, or doubles the batch where nothing too large was met yet.
    if len(peaks) > SECANTS and len(peaks) % 2:
        return (low + high) // 2 if high in peaks else min(2 * low, high - 1)
    # 2. The line through two points, those beside the crossing if they are known; or through one, with a known slope.
    if len(peaks) > 1:
        left, right = sorted(sorted(peaks, key=lambda b: abs(peaks[b] - budget))[:2])
        if low in peaks and high in peaks:
            left, right = low, high
        slope = (peaks[right] - peaks[left]) / (right - left)
    else:
        left, slope = next(iter(peaks)), 0.0 if per_image is None else per_image()
    if slope <= 0:
        return (low + high) // 2 if high in peaks else min(max(2 * low, low + 1), high - 1)
    batch = left + int((budget - peaks[left]) // slope)
    # 3. Inside the bracket. A line that ends at ``low`` or ``high`` says that its neighbour is to be looked at.
    return min(max(batch, low + 1), high - 1)

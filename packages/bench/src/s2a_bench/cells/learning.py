"""Whether a cell learned: its training loss and its accuracy beside those of guessing.

A finished training is a result whatever it learned, so such a cell stays ``done``; but whoever reads an average must be
told that a part of it did not learn, most often because of a learning rate that is far too high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from s2a_bench.cells.record import Record

LEAST_FALL = 0.05
"""A training loss that ends less than this share of its possible fall below that of guessing has not fallen."""

RISE = 0.5
"""A loss that ends higher than its lowest epoch by more than this share of its whole fall has risen again."""

QUANTILE = 2.326
"""Of the normal distribution at 99 %: an accuracy above guessing by less is at the level of chance."""


def guessing_loss(counts: Sequence[int], smoothing: float = 0.0) -> float:
    """Cross-entropy, in nats, of always predicting the class frequencies ``p_c``: ``-sum(p_c * ln(p_c))``.

    With label smoothing ``s`` over ``C`` classes the best constant prediction is ``q_c = (1 - s) * p_c + s / C``, and
    its loss ``-sum(q_c * ln(q_c))``.

    Args:
        counts: Images of each class in the training list; without smoothing, classes without any may be left out.
        smoothing: ``s``, from 0 to 1.
    """
    total = sum(counts)
    shares = ((1 - smoothing) * n / total + smoothing / len(counts) for n in counts)
    return -math.fsum(share * math.log(share) for share in shares if share)


def least_loss(classes: int, smoothing: float) -> float:
    """Cross-entropy, in nats, of a perfect model: 0 without label smoothing ``s``, else the entropy of its targets.

    These are ``1 - s + s / C`` for the image's own class and ``s / C`` for each of the ``C - 1`` others.

    Args:
        classes: ``C``.
        smoothing: ``s``, from 0 to 1.
    """
    if classes < 2 or not smoothing:
        return 0.0
    other = smoothing / classes
    own = 1 - smoothing + other
    return -own * math.log(own) - (classes - 1) * other * math.log(other)


def guessing_accuracy(counts: Sequence[int]) -> float:
    """Accuracy in percent of always naming the most frequent class of the scored list.

    Args:
        counts: Images of each class in the scored list.
    """
    return 100.0 * max(counts) / sum(counts)


def find_problems(record: Record) -> list[str]:
    """Why a finished cell counts as one that did not learn, a clause for each reason; empty if it learned.

    Three signs, each sufficient, with the loss ``L_e`` of epoch ``e`` of ``E``, the loss ``H`` of guessing class
    frequencies, and the accuracy ``q`` of the most frequent class among ``n`` scored images (records without the last
    two, of older versions, are compared with equally frequent classes: ``H = ln(C)``, ``q = 1 / C``). ``F`` is how far
    a loss can fall: ``H``, less what a perfect model keeps under label smoothing.

    * the loss did not fall: ``L_E > H - 0.05 * F``;
    * the loss rose again: ``L_E - min(L) > 0.5 * (max(L_1, H) - min(L))``, and by more than ``0.05 * F``;
    * the accuracy is at the level of chance: not above ``q + 2.326 * sqrt(q * (1 - q) / n)``, one-sided at 1 %.

    Where the epoch was chosen on val, the weights are not those of the last one: the lowest loss takes its place, and
    none where training stopped early. Where the loss was balanced (``train.balance``), ``H`` is that of equally
    frequent classes, and the balanced accuracy, where it is known, is compared with ``q = 1 / C``.

    Args:
        record: Any; of one that is not ``done`` nothing is said.
    """
    if record.status != "done":
        return []
    found = []
    losses = [epoch["loss"] for epoch in record.curve if "loss" in epoch]
    if record.best_epoch is not None and losses:
        losses = [min(losses)] if len(record.curve) >= record.epochs else []
    guess = record.guessing_loss
    if guess is None:
        guess = math.log(record.classes) if record.classes > 1 else 0.0
    fall = guess - least_loss(record.classes, record.train_config.get("label_smoothing", 0.0))
    # A single class, or a list with only one, has nothing to learn; what is left are rounding errors.
    if losses and fall > 1e-9:
        lowest, last = min(losses), losses[-1]
        if last > guess - LEAST_FALL * fall:
            found.append(f"its training loss ended at {last:.2f}; guessing class frequencies gives {guess:.2f}")
        elif last - lowest > max(RISE * (max(losses[0], guess) - lowest), LEAST_FALL * fall):
            found.append(
                f"its training loss rose again, from {lowest:.2f} after epoch {losses.index(lowest) + 1} to {last:.2f}"
            )
    chance = record.guessing_accuracy
    if chance is None:
        chance = 100.0 / record.classes if record.classes > 1 else None
    accuracy, words = record.accuracy, "accuracy"
    if record.train_config.get("balance") and record.balanced_accuracy is not None and record.classes > 1:
        accuracy, words, chance = record.balanced_accuracy, "balanced accuracy", 100.0 / record.classes
    if accuracy is not None and chance is not None and chance < 100 and record.scored_images > 0:
        share = chance / 100
        margin = 100 * QUANTILE * math.sqrt(share * (1 - share) / record.scored_images)
        if accuracy <= chance + margin:
            found.append(f"its {words} of {accuracy:.1f} % is no better than guessing ({chance:.1f} %)")
    return found


def describe_problems(record: Record) -> str:
    """``did not learn: its accuracy of 1.3 % is no better than guessing (8.9 %)``; empty if it learned."""
    problems = find_problems(record)
    return f"did not learn: {', and '.join(problems)}" if problems else ""

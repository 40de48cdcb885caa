"""What every method must keep to, as a check that any package can call on its own method.

``check_method(config, make_model)`` raises an ``AssertionError`` that names the first promise broken. It needs no test
framework, trains tiny models only a few steps, and leaves the random state as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from s2a.backbones import describe, input_channels
from s2a.testing.case import STEPS, Case, differences, snapshot
from s2a.testing.passes import (
    LEARNING_STEPS,
    check_autocast,
    check_checkpointing,
    check_compile,
    check_identity,
    check_inference,
    check_keeps,
    check_learning,
    check_output,
    check_training,
)
from s2a.testing.round_trips import (
    check_copy,
    check_detach,
    check_merge,
    check_state,
)

__all__ = [
    "CHECKS",
    "LEARNING_STEPS",
    "SLOW_CHECKS",
    "STEPS",
    "Case",
    "check_autocast",
    "check_checkpointing",
    "check_compile",
    "check_copy",
    "check_detach",
    "check_identity",
    "check_inference",
    "check_keeps",
    "check_learning",
    "check_merge",
    "check_method",
    "check_output",
    "check_state",
    "check_training",
    "differences",
    "snapshot",
]

CHECKS: tuple[Callable[[Case], None], ...] = (
    check_output,
    check_identity,
    check_training,
    check_detach,
    check_state,
    check_copy,
    check_inference,
    check_keeps,
    check_merge,
    check_autocast,
    check_checkpointing,
    check_compile,
    check_learning,
)
"""Every check, in the order in which ``check_method`` runs them."""

SLOW_CHECKS = (check_compile, check_learning)
"""Those that take seconds; each of the others takes a few hundredths of one."""


def check_method(
    config: Any,
    make_model: Callable[[], nn.Module],
    num_classes: int = 5,
    *,
    image_size: int | Sequence[int] | None = None,
    batch_size: int = 4,
    checks: Sequence[Callable[[Case], None]] | None = None,
) -> None:
    """Checks a method on a backbone.

    Args:
        config: The method's config.
        make_model: Makes the timm model; take a tiny one.
        num_classes: Classes of the head.
        image_size: Side, or height and width, of the images; ``None`` takes the model's own.
        batch_size: Images per step.
        checks: Which of ``CHECKS`` to run; ``None``: all of them.

    Raises:
        AssertionError: A promise is broken; the message says which, and by what.
        S2AError: The method refuses the config or the model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model()
        size = describe(model, image_size).image_size
        case = Case(config, model, num_classes, torch.randn(batch_size, input_channels(model), *size))
        for check in CHECKS if checks is None else checks:
            check(case)

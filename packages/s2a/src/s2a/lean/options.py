"""What every method's config can say about the activations it keeps."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal

from s2a.errors import S2AError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(" + "|".join(_UNITS) + ")")


def _new(default: Any) -> Any:
    """A field that is part of a config's identity only where it is not its default: older records stay valid."""
    return dataclasses.field(default=default, metadata={"identity": "unless default"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeanOptions:
    """What the backward pass keeps.

    Attributes:
        activations: ``"exact"``: what PyTorch keeps. ``"lean"``: codes of norms and activations; the rest is computed
            again (docs/lean.md).
        memory_budget_mb: With ``"lean"``: the most that weights and saved tensors may take, in MB of 1e6 bytes, at
            ``budget_batch`` images. A planner chooses what each block keeps.
        memory_budget: Instead: a whole device's memory as ``"8GiB"`` or ``"640MB"``, for the peak of a training step
            with gradients, AdamW's state and temporaries.
        budget_batch: Images per step that a budget is for.
        in_place: With ``"lean"``: write residual sums over their inputs, for the last megabytes of the peak. Hooks that
            keep a block's input or output must then copy it. Refused where something that trains reads the stream.
        recompute: With ``"lean"``: number format of the products of the forward pass that the backward pass computes
            again (q, k, v; activations' inputs; not the side branch): ``"same"`` as in the forward pass, or ``"bf16"``,
            twice as fast on a CPU that multiplies it natively, slower on hardware that does not. Gradients lose little
            (docs/lean.md).
    """

    activations: Literal["exact", "lean"] = _new("exact")
    memory_budget_mb: float | None = _new(None)
    memory_budget: str | None = _new(None)
    budget_batch: int = _new(32)
    in_place: bool = _new(False)
    recompute: Literal["same", "bf16"] = _new("same")

    def check_lean(self, *others: str) -> None:
        """Checks the values.

        Args:
            others: Further values that ``activations`` may have.

        Raises:
            S2AError: One that does not fit.
        """
        allowed = ("exact", *others, "lean")
        if self.activations not in allowed:
            choices = ", ".join(map(repr, allowed))
            raise S2AError(f"activations={self.activations!r} is unknown; choose one of {choices}.")
        if not isinstance(self.in_place, bool) or (self.in_place and self.activations != "lean"):
            raise S2AError(f"in_place={self.in_place!r} is True or False, and True only with activations='lean'.")
        if self.recompute not in ("same", "bf16"):
            raise S2AError(f"recompute={self.recompute!r} is unknown; choose 'same' or 'bf16'.")
        if self.recompute != "same" and self.activations != "lean":
            raise S2AError(f"recompute={self.recompute!r} needs activations='lean': nothing else computes again.")
        given = [n for n in ("memory_budget_mb", "memory_budget") if getattr(self, n) is not None]
        if given and self.activations != "lean":
            raise S2AError(
                f"{given[0]} needs activations='lean', which alone can be planned; here it is {self.activations!r}."
            )
        if len(given) == 2:
            raise S2AError("memory_budget_mb and memory_budget are two ways to say the same; give one of them.")
        budget = self.memory_budget_mb
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf
        ):
            raise S2AError(f"memory_budget_mb={budget!r} must be a number of megabytes (1e6 bytes), 640 for example.")
        if self.memory_budget is not None:
            parse_size(self.memory_budget)
        if type(self.budget_batch) is not int or self.budget_batch < 1:
            raise S2AError(f"budget_batch={self.budget_batch!r} must be an integer of at least 1.")


def parse_size(text: Any) -> int:
    """Bytes of ``"8GiB"`` or ``"640MB"``.

    Raises:
        S2AError: Anything else.
    """
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found or not float(found[1]):
        raise S2AError(f"memory_budget={text!r} must be a number and one of {', '.join(_UNITS)}, as in 8GiB.")
    return int(float(found[1]) * _UNITS[found[2]])

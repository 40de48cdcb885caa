"""What every method's config can say about the activations it keeps."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal

from s2a.errors import S2AError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(" + "|".join(_UNITS) + ")")

USUAL_BATCH = 32
"""Images of a step where nobody says how many: those of the paper's tables."""


def later_option(default: Any, **metadata: Any) -> Any:
    """A field that is part of a config's identity only where it is not its default: older records stay valid.

    Args:
        default: Of the option.
        metadata: ``former``, a default of before, which is no part of the identity either; ``older_name_of``, the
            option that this one is another name of; ``changed_with``, an option and its value, ``NAME=VALUE``, with
            which results under the default are not those under the former one: then the default is part of the
            identity.
    """
    return dataclasses.field(default=default, metadata={"identity": "unless default", **metadata})


def is_older_name(field: dataclasses.Field[Any]) -> bool:
    """Whether an option of a config is only another's older name, which still works."""
    return "older_name_of" in field.metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeanOptions:
    """What the backward pass keeps.

    Attributes:
        activations: ``"exact"``: what PyTorch keeps. ``"lean"``: codes of norms and activations; the rest is computed
            again (docs/lean.md).
        saved_budget_mb: With ``"lean"``: the most that weights and saved tensors may take together, in MB of 1e6 bytes
            (``measured_mb`` of ``s2a-bench memory``). A planner chooses what each block keeps.
        peak_budget: Instead: the most that a whole training step may take at its peak, gradients, AdamW's state and
            temporaries included: ``"8GiB"`` or ``"640MB"``.
        budget_batch: Images per step that a budget is for; a larger step then gives a warning. ``None``: it is planned
            for ``USUAL_BATCH`` images, and anew at the first training step of another size and at every larger one.
        in_place: With ``"lean"``: write residual sums over their inputs, for the last megabytes of the peak. Hooks that
            keep a block's input or output must then copy it. Refused where something that trains reads the stream.
        offload: With ``"lean"``: what is kept goes to host memory between the passes, for a card that is still too
            small; on a CPU nothing is saved. Budgets are planned as if it stayed.
        recompute: With ``"lean"``: number format of the products of the forward pass that the backward pass computes
            again (q, k, v; activations' inputs; whole blocks; not the side branch): ``"same"`` as in the forward pass,
            or ``"bf16"``, twice as fast on hardware that multiplies it natively, slower elsewhere. ``"auto"`` is
            ``"bf16"`` for a forward pass in float32 on such hardware. Gradients lose little (docs/lean.md).
        memory_budget_mb: Older name of ``saved_budget_mb``; what is given under it is found under the newer one.
        memory_budget: Older name of ``peak_budget``, likewise.
    """

    activations: Literal["exact", "lean"] = later_option("exact")
    saved_budget_mb: float | None = later_option(None)
    peak_budget: str | None = later_option(None)
    budget_batch: int | None = later_option(None, former=32)
    in_place: bool = later_option(False)
    offload: bool = later_option(False)
    recompute: Literal["auto", "same", "bf16"] = later_option("auto", former="same", changed_with="activations=lean")
    memory_budget_mb: float | None = later_option(None, older_name_of="saved_budget_mb")
    memory_budget: str | None = later_option(None, older_name_of="peak_budget")

    @property
    def has_budget(self) -> bool:
        """Whether there is a memory budget, of either kind."""
        return self.saved_budget_mb is not None or self.peak_budget is not None

    def exact(self) -> Any:
        """The same method with exact activations: what to predict with, where the backward pass has nothing to keep."""
        return dataclasses.replace(
            self,  # type: ignore[type-var]
            activations="exact",
            saved_budget_mb=None,
            peak_budget=None,
            budget_batch=None,
            in_place=False,
            offload=False,
            recompute="auto",
        )

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
        for name in ("in_place", "offload"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise S2AError(f"{name}={value!r} must be True or False.")
            if value and self.activations != "lean":
                raise S2AError(f"{name}=True needs activations='lean'; here it is {self.activations!r}.")
        if self.recompute not in ("auto", "same", "bf16"):
            raise S2AError(f"recompute={self.recompute!r} is unknown; choose 'auto', 'same' or 'bf16'.")
        if self.recompute == "bf16" and self.activations != "lean":
            raise S2AError(f"recompute={self.recompute!r} needs activations='lean': nothing else computes again.")
        if self.activations != "lean":  # "same" was the default once: saved configs have it.
            object.__setattr__(self, "recompute", "auto")
        self._check_budgets()

    def _check_budgets(self) -> None:
        given = [n for n in (*_OLDER_NAMES, *_OLDER_NAMES.values()) if getattr(self, n) is not None]
        if given and self.activations != "lean":
            raise S2AError(
                f"{given[0]} needs activations='lean', which alone can be planned; here it is {self.activations!r}."
            )
        saved = [name for name in given if name.endswith("_mb")]
        peak = [name for name in given if name not in saved]
        if saved and peak:
            raise S2AError(
                f"{saved[0]} limits weights and saved tensors, {peak[0]} the peak of a whole step: two different "
                "limits, of which one can be planned for; give one of them."
            )
        if len(given) > 1:
            raise S2AError(f"{' and '.join(given)} are two names of one limit; give one of them.")
        for name in given:
            value = getattr(self, name)
            if not name.endswith("_mb"):
                parse_size(value, name)
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise S2AError(f"{name}={value!r} must be a number of megabytes (1e6 bytes), 640 for example.")
            if name in _OLDER_NAMES:
                object.__setattr__(self, _OLDER_NAMES[name], value)
                object.__setattr__(self, name, None)
        batch = self.budget_batch
        if batch is not None and (type(batch) is not int or batch < 1):
            raise S2AError(f"budget_batch={batch!r} must be an integer of at least 1.")


_OLDER_NAMES = {f.name: f.metadata["older_name_of"] for f in dataclasses.fields(LeanOptions) if is_older_name(f)}
"""Older name of a budget -> its name."""


def parse_size(text: Any, name: str = "peak_budget") -> int:
    """Bytes of ``"8GiB"`` or ``"640MB"``; ``name`` is what an error calls them.

    Raises:
        S2AError: Anything else.
    """
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found or not float(found[1]):
        raise S2AError(f"{name}={text!r} must be a number and one of {', '.join(_UNITS)}, as in 8GiB.")
    return int(float(found[1]) * _UNITS[found[2]])

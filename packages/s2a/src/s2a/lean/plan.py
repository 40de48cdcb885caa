"""A memory plan as data: what every fused branch keeps. ``s2a.planning`` makes plans."""

from __future__ import annotations

import dataclasses
from collections import Counter

from s2a.lean.spec import SavedBits


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every fused branch keeps, and what that comes to in bytes, work and error.

    Attributes:
        saved_bits: (path of the block, role) -> what the branch keeps.
        images: Batch size that it was made for.
        budget: Bytes asked for; ``None``: no budget.
        predicted: Bytes of weights and saved tensors.
        smallest: The least that could be planned.
        extra_work: Products that the backward pass repeats, as a share of those of a step without.
        error: Estimated one minus cosine of the gradients.
        peak: Simulated bytes of a whole step, where the budget was for that.
        cost: What the planner made least: time of what is done again, and gradient error (``planning.knapsack``).
        paged: Bytes of frozen weights that the plan keeps out of the device (``s2a.page_frozen``).
    """

    saved_bits: dict[tuple[str, str], SavedBits]
    images: int
    budget: int | None
    predicted: int
    smallest: int
    extra_work: float
    error: float
    peak: int | None = None
    cost: float = 0.0
    paged: int = 0

    def __str__(self) -> str:
        """The plan as lines of text; branches with the same choice share a line."""
        asked = "" if self.budget is None or self.peak is not None else f" of {self.budget / 1e6:,.1f} MB"
        lines = [
            f"lean plan for {self.images} images: {self.predicted / 1e6:,.1f} MB{asked} (weights and saved tensors), "
            f"{self.extra_work:.1%} of a step's products again, estimated gradient cosine {1 - self.error:.4f}"
        ]
        if self.peak is not None:
            lines[0] += f", {self.peak / 1e6:,.1f} MB at the peak of a step (simulated)"
        if self.paged:
            lines.append(f"  {self.paged / 1e6:,.1f} MB of frozen weights paged")
        counts = Counter((role, bits) for (_, role), bits in self.saved_bits.items())
        for (role, bits), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1])):
            if bits.block:
                if role == "attn":
                    lines.append(f"  {count:>3} x block: input in {bits.block} bits, the whole block computed again")
                continue
            inner = {"attn": "q, k, v", "mlp": "activation"}[role]
            rest = f"{inner} in {bits.inner} bits" if bits.inner else f"{inner} computed again"
            lines.append(f"  {count:>3} x {role}: norm in {bits.norm} bits, {rest}")
        return "\n".join(lines)

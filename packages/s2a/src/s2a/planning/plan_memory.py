"""Plans what the lean branches of an adapted model keep: under a budget, the least costly choice."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from s2a.adapted import Adapted, require_adapted
from s2a.backbones import input_channels
from s2a.errors import S2AError
from s2a.lean.apply import DEFAULTS
from s2a.lean.options import USUAL_BATCH, LeanOptions, parse_size
from s2a.lean.plan import Plan
from s2a.lean.spec import BranchSpec
from s2a.memory import SavedBytes, saved_bytes, simulated_peak
from s2a.ops.offload import paused
from s2a.paged_model import page_frozen, unpage_frozen
from s2a.paging import host_bytes
from s2a.planning.knapsack import BudgetTooSmall, cost_of, make_plan
from s2a.planning.survey import measure_specs, resident_weights, set_plan

log = logging.getLogger("s2a")

_not_compiled: Any = torch.compiler.disable  # the type PyTorch gives it takes no methods

P = TypeVar("P")
_MakePlan = Callable[[int | None], Plan]
_Measured = tuple[list[BranchSpec], int]

PAGING_COST = 0.05
"""Cost of fetching paged weights in both passes, as ``knapsack`` counts it: a share of a step's time."""
MAX_TRIES = 5
"""Plans simulated for a peak budget, at most."""
TOLERANCE = 0.01
"""The search for a peak ends this share of the budget below it."""


def plan_memory(
    adapted: Adapted,
    saved_budget_mb: float | None = None,
    *,
    peak_budget: str | None = None,
    batch_size: int | None = None,
    budget_mb: float | None = None,
    budget: str | None = None,
    may_page: bool = True,
) -> Plan:
    """Chooses what lean activations keep, block by block, so that a budget is met at the least cost; in place.

    The cost is repeated work and gradient error (``planning.knapsack``). Where a budget needs it, or a plan that
    repeats much would be the alternative, the frozen weights are paged too (``s2a.page_frozen``); a plan that is made
    anew may take that back. Call it under the autocast and with the
    weights (``s2a.cast_frozen``) that the model will train with. Takes two forward passes of few images, and for a peak
    some simulated steps. With a budget, training steps of more images than planned for are noticed (``BudgetWatch``).

    Args:
        adapted: A model attached with ``activations="lean"``.
        saved_budget_mb: Most that weights and saved tensors may take, in MB of 1e6 bytes.
        peak_budget: Instead, most that a whole training step with AdamW may take at its peak (``s2a.simulated_peak``),
            ``"8GiB"`` for example. With neither, nothing is changed: the plan says what is kept now.
        batch_size: Images per step; ``None``: the config's ``budget_batch``, and if that is ``None`` too
            ``USUAL_BATCH`` until the first training step says how many there are.
        budget_mb: Older name of ``saved_budget_mb``.
        budget: Older name of ``peak_budget``.
        may_page: Whether the plan may page the frozen weights, or take back that an earlier one did; a plan that a
            training step asks for does neither.

    Returns:
        The plan; ``print`` shows it.

    Raises:
        S2AError: No adapted model, one without lean branches, values that are no budget or batch, or a budget that
            cannot be met; the message has the smallest that can.
    """
    adapted = require_adapted("plan_memory", adapted)
    if None not in (saved_budget_mb, budget_mb) or None not in (peak_budget, budget):
        raise S2AError("budget_mb and budget are older names of saved_budget_mb and peak_budget; give one of them.")
    saved_budget_mb = budget_mb if saved_budget_mb is None else saved_budget_mb
    peak_budget = budget if peak_budget is None else peak_budget
    LeanOptions(activations="lean", saved_budget_mb=saved_budget_mb, peak_budget=peak_budget).check_lean()
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise S2AError(f"batch_size={batch_size!r} must be an integer of at least 1, or None.")
    given = batch_size if batch_size is not None else getattr(adapted.config, "budget_batch", None)
    images = USUAL_BATCH if given is None else given

    def choose(plan: _MakePlan) -> Plan:
        if peak_budget is None:
            return plan(None if saved_budget_mb is None else int(saved_budget_mb * 1e6))
        device = next(adapted.head.parameters()).device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        most = parse_size(peak_budget)
        return _plan_for_peak(plan, lambda: simulated_peak(adapted, images, autocast=autocast).total, most, images)

    if saved_budget_mb is None and peak_budget is None:
        found = _planned(adapted, images, choose)
    else:
        measured: list[_Measured] = []

        def search() -> Plan:
            return _planned(adapted, images, choose, measured)

        found = _plan_with_paging(adapted, search, measured) if may_page else search()
    found = adapted._plan = dataclasses.replace(found, paged=host_bytes(adapted.backbone))
    if saved_budget_mb is not None or peak_budget is not None:
        (_watch_of(adapted) or BudgetWatch()).follow(adapted, images, given is not None, (saved_budget_mb, peak_budget))
    return found


def _plan_with_paging(adapted: Adapted, search: Callable[[], Plan], measured: list[_Measured]) -> Plan:
    """A plan with the frozen weights on the device, or paged ones where that is not possible, or dear; in place.

    Paging that somebody else asked for stays. If nothing meets the budget, all is as it was before.
    """
    if adapted._paging and not adapted._paged_by_plan:
        return search()
    was_paged = adapted._paged_by_plan
    _set_paging(adapted, False)
    try:
        # 1. As it is. A plan that costs little more than what is kept without a budget is taken.
        found, problem = None, None
        try:
            found = search()
        except BudgetTooSmall as error:
            problem = error
        specs = measured[0][0] if measured else []
        usual = cost_of(specs, [DEFAULTS[spec.role] for spec in specs])
        if found is not None and found.cost <= usual + PAGING_COST:
            return found
        # 2. Paged, if anything can be.
        paged = None
        try:
            _set_paging(adapted, True)
            paged = search()
        except S2AError as error:
            problem = error if isinstance(error, BudgetTooSmall) else problem
        if paged is not None and (found is None or paged.cost + PAGING_COST < found.cost):
            return paged
        if found is None:
            assert problem is not None
            raise problem
        _set_paging(adapted, False)
        set_plan(adapted._branches, found)
        return found
    except BaseException:
        _set_paging(adapted, was_paged)
        raise


def _set_paging(adapted: Adapted, paged: bool) -> None:
    """Pages the frozen weights for a plan, or takes that back."""
    if paged and not adapted._paging:
        page_frozen(adapted)
    elif not paged and adapted._paging:
        unpage_frozen(adapted)
    adapted._paged_by_plan = paged


def plan_smallest(adapted: Adapted, batch_size: int) -> tuple[Plan, Plan]:
    """Makes every branch keep the fewest bytes that can be planned; in place.

    Args:
        adapted: As for ``plan_memory``; likewise called under the autocast of the step.
        batch_size: Images that the plan's bytes are for; what is kept does not depend on it.

    Returns:
        The plan of before, and the new one.

    Raises:
        S2AError: As ``plan_memory``.
    """

    def choose(plan: _MakePlan) -> tuple[Plan, Plan]:
        before = plan(None)
        return before, plan(before.smallest)

    found = _planned(adapted, batch_size, choose)
    adapted._plan = found[1]
    return found


def _planned(
    adapted: Adapted, images: int, choose: Callable[[_MakePlan], P], measured: list[_Measured] | None = None
) -> P:
    """Measures the branches, and applies the plan that ``choose`` makes with a function of the most bytes.

    ``measured`` takes what was measured, and gives it back the next time.
    """
    branches = adapted._branches
    if not branches:
        raise S2AError(
            f"This model under {adapted.name!r} has no lean branches to plan; attach it with activations='lean' to a "
            "backbone that trains."
        )
    reference = next(adapted.head.parameters())
    shape = (input_channels(adapted.backbone), *adapted.image_size)

    def saved(batch: int) -> SavedBytes:
        return saved_bytes(adapted, torch.zeros(batch, *shape, device=reference.device, dtype=reference.dtype))

    # Measured in training mode; modes, and buffers that a forward pass changes, are put back in any case.
    modes = {module: module.training for module in adapted.modules()}
    buffers = {name: value.clone() for name, value in adapted.named_buffers()}
    before = [branch.saved_bits for branch in branches]
    watch = _watch_of(adapted) or BudgetWatch()
    try:
        watch.planning = True
        adapted.train()
        with paused():
            specs, others = measured[0] if measured else measure_specs(adapted, branches, saved, images)
        if measured is not None:
            measured[:] = [(specs, others)]
        others += resident_weights(adapted)

        def plan(most: int | None) -> Plan:
            found = make_plan(specs, before, images, others, most)
            set_plan(branches, found)
            return found

        with paused():  # Planned as if nothing went to host memory.
            return choose(plan)
    except BaseException:
        for branch, keep in zip(branches, before, strict=True):
            branch.saved_bits = keep
        raise
    finally:
        watch.planning = False
        for module, mode in modes.items():
            module.training = mode
        for name, value in adapted.named_buffers():
            value.copy_(buffers[name])  # Batch norms count what they see.


class BudgetWatch:
    """Keeps a budget true to the batches that are trained: a forward pre-hook of the adapted model.

    A step with more images than planned for keeps more than the budget. Where the user said for how many images the
    budget is, the first such step gives a warning. Where nobody said, the plan is made anew for that step's images, and
    at the first step also for fewer.

    Attributes:
        planning: While a plan is made, whose own small passes are no training steps.
    """

    def __init__(self) -> None:
        self.planning = False
        self._images = 0
        self._given = self._seen = self._warned = False
        self._budgets: tuple[float | None, str | None] = (None, None)

    def follow(self, adapted: Adapted, images: int, given: bool, budgets: tuple[float | None, str | None]) -> None:
        """Notes a budget and the batch size that it was planned for, and whether the user gave that."""
        self._images, self._given, self._budgets, self._warned = images, given, budgets, False
        if _watch_of(adapted) is None:
            adapted.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, adapted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook; a simulation's images, which have no data, are no training step."""
        images = args[0] if args else kwargs.get("images")
        training = adapted.training and torch.is_grad_enabled() and not self.planning
        if training and isinstance(images, Tensor) and not isinstance(images, FakeTensor):
            self._check(adapted, len(images))

    @_not_compiled
    def _check(self, adapted: Adapted, images: int) -> None:
        first, self._seen = not self._seen, True
        if self._given:
            if images > self._images and not self._warned:
                self._warned = True
                warnings.warn(
                    f"A training step has {images} images, but the memory budget was planned for {self._images}: it "
                    f"keeps more than the budget; attach with budget_batch={images}, or call s2a.plan_memory with "
                    f"batch_size={images}.",
                    stacklevel=2,
                )
        elif images > self._images or (first and images < self._images):
            saved_budget_mb, peak_budget = self._budgets
            made = plan_memory(adapted, saved_budget_mb, peak_budget=peak_budget, batch_size=images, may_page=False)
            log.info("%s", made)
            self._given = False  # The step said so, not the user: a larger one is planned for too.


def _watch_of(adapted: Adapted) -> BudgetWatch | None:
    owners = (getattr(hook, "__self__", None) for hook in adapted._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, BudgetWatch)), None)


def _plan_for_peak(plan: _MakePlan, peak: Callable[[], int], budget: int, batch_size: int) -> Plan:
    """The plan whose simulated peak comes closest to a budget from below.

    Saved bytes and peak move together, but not byte for byte, so this is a fixed-point iteration: a plan is made for
    ``aim`` saved bytes, its step simulated, and ``aim`` corrected by how far the peak was from the budget.
    """
    # Start from what is kept now.
    found = plan(None)
    least = found.smallest
    aim, best, top = found.predicted, None, 0
    for _ in range(MAX_TRIES):
        found = plan(max(aim, least))
        top = peak()
        if top <= budget and (best is None or found.cost < best.cost):
            best = dataclasses.replace(found, peak=top)
        if 0 <= budget - top < TOLERANCE * budget or (top > budget and found.predicted <= least * 1.001):
            break
        aim = found.predicted + budget - top
    if best is None:
        raise BudgetTooSmall(
            f"A peak_budget of {budget / 1e6:,.1f} MB cannot be met with {batch_size} images: a step of the smallest "
            f"plan takes {top / 1e6:,.1f} MB; give that or more, or fewer images (budget_batch)."
        )
    plan(best.predicted)  # Apply it once more: the last one tried may have been another.
    return best

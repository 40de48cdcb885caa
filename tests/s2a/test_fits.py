"""The largest batch within a budget: exact for the simulated peak, found without data, and what bad input gets."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from s2a import testing
from s2a.fitting import Fit, budget_bytes, largest_batch
from s2a.memory import StepSimulation, repeats, replay
from s2a.memory.ledger import Ledger
from test_selection import split_rings
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

# The search, on peaks by formula


@pytest.mark.parametrize("fixed", [0, 1000, 10**9])
@pytest.mark.parametrize("slope", [1, 512, 10**6])
@pytest.mark.parametrize("room", [-1, 0, 1, 63, 64, 65, 5000])
def test_the_search_finds_the_largest(fixed: int, slope: int, room: int) -> None:
    found = largest_batch(lambda batch: fixed + slope * batch, fixed + slope * room, per_image=lambda: slope * 1.3)
    assert found.batch == max(room, 0) and not found.at_least
    assert len(found.peaks) <= 12


@pytest.mark.parametrize("budget", [10**6, 10**7, 123_456_789, 10**9])
def test_the_search_on_a_peak_with_kinks_and_teeth(budget: int) -> None:
    """Two phases and uneven chunks: the answer fits, and one more does not."""

    def peak(batch: int) -> int:
        chunk = -(-batch // -(-batch // 7))
        return max(900_000 + 40 * batch, 100_000 + 9_001 * batch + 20_000 * chunk)

    found = largest_batch(peak, budget)
    assert peak(found.batch) <= budget < peak(found.batch + 1)
    assert {found.batch, found.batch + 1} <= found.peaks.keys()
    assert len(found.peaks) <= 14


def test_the_search_ends_where_nothing_limits() -> None:
    found = largest_batch(lambda batch: 5, 10, most=1 << 17)
    assert (found.batch, found.at_least) == (1 << 17, True)
    assert len(found.peaks) <= 20


# Fits, against the real simulation

CASES = [("vit", "s2a", "lean"), ("vit", "lora", "exact"), ("convnext", "full", "exact"), ("swin", "s2a", "lean")]
CASES += [("vit", "linear", ""), ("resnet", "bias", "lean"), ("vit", "full", "lean"), ("swin", "unipt", "")]
FAST = [("vit", "s2a", "lean"), ("convnext", "full", "exact"), ("vit", "linear", "")]


@pytest.mark.parametrize(("model", "method", "activations"), split_rings(CASES, fast=FAST))
def test_one_image_more_does_not_fit(model: str, method: str, activations: str) -> None:
    make, size = tiny.MODELS[model]
    config = s2a.method_config(method, **({"activations": activations} if activations else {}))
    budget = 24 * 10**6
    found = s2a.fits(make(), config, budget, num_classes=5, image_size=size)
    adapted = s2a.attach(make(), config, 5, image_size=size)
    assert found.batch_size >= 1
    assert s2a.simulated_peak(adapted, found.batch_size).total == found.peak_bytes <= budget
    assert s2a.simulated_peak(adapted, found.batch_size + 1).total > budget
    planned = activations == "lean" and model != "resnet"  # Blocks of a ResNet have no branches to plan.
    assert (found.smallest is not None) == planned == (found.plan is not None)
    if found.smallest:
        plan = found.smallest.plan
        assert plan is not None and found.plan is not None
        assert plan.predicted == plan.smallest <= found.plan.predicted
        s2a.plan_memory(adapted, plan.smallest / 1e6 + 1e-6, batch_size=max(1, found.batch_size))
        assert s2a.simulated_peak(adapted, found.smallest.batch_size).total == found.smallest.peak_bytes <= budget
        assert s2a.simulated_peak(adapted, found.smallest.batch_size + 1).total > budget
        assert found.smallest.relative_step_flops >= found.relative_step_flops
    elif not activations:
        assert found.relative_step_flops == 1


def test_more_budget_never_means_fewer_images() -> None:
    make, size = tiny.MODELS["vit"]
    config = s2a.method_config("bias")
    found = [s2a.fits(make(), config, f"{mb}MB", image_size=size).batch_size for mb in (5, 20)]
    assert found == sorted(found) and found[0] < found[-1]


def test_nothing_fits_and_what_would() -> None:
    """The smallest budget that is named is met by one image, one byte less by none."""
    make, size = tiny.MODELS["vit"]
    config = s2a.method_config("s2a", activations="lean")
    found = s2a.fits(make(), config, 1000, image_size=size)
    assert found.batch_size == 0 and found.smallest is not None and found.smallest.batch_size == 0
    assert f"{-(-found.smallest_budget // 10**5) / 10:,.1f} MB" in str(found)
    again = s2a.fits(make(), config, found.smallest_budget, image_size=size)
    assert again.smallest is not None and max(again.batch_size, again.smallest.batch_size) >= 1
    less = s2a.fits(make(), config, found.smallest_budget - 1, image_size=size)
    assert less.batch_size == 0 and less.smallest is not None and less.smallest.batch_size == 0


def test_of_given_batches() -> None:
    make, size = tiny.MODELS["vit"]
    config = s2a.method_config("bias")
    free = s2a.fits(make(), config, "20MB", image_size=size)
    some = s2a.fits(make(), config, "20MB", image_size=size, batch_sizes=[1, 2, free.batch_size, free.batch_size + 1])
    assert (some.batch_size, some.peak_bytes) == (free.batch_size, free.peak_bytes)
    all_fit = s2a.fits(make(), config, "20MB", image_size=size, batch_sizes=[2, 1])
    assert (all_fit.batch_size, all_fit.at_least) == (2, True)


@pytest.mark.parametrize(("relative", "said"), [(1.0, "+0%"), (0.998, "+0%"), (0.97, "-3%"), (1.126, "+13%")])
def test_operations_of_the_smallest_plan_in_words(relative: float, said: str) -> None:
    smallest = Fit(20, False, 90, 100, 1.0, relative)
    answer = str(Fit(10, False, 95, 100, 1.0, 1.0, smallest=smallest))
    assert answer == f"batch 10 as it comes; 20 with the smallest plan, {said} operations"


def test_operations_are_those_of_torchs_counter() -> None:
    """Forward and backward of a real step, by the counter on real tensors; with checkpointing the forward again."""
    make, size = tiny.MODELS["convnext"]  # No attention: older counters leave out a CPU's.
    config = s2a.method_config("bias")
    adapted = s2a.attach(make(), config, 5, image_size=size).train()
    images = torch.randn(4, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(adapted(images), torch.zeros(4, dtype=torch.long)).backward()
    peak = s2a.simulated_peak(adapted, 4)
    assert peak.flops == counter.get_total_flops() > 0
    model = make()
    model.set_grad_checkpointing(True)
    found = s2a.fits(model, config, "20MB", num_classes=5, image_size=size)
    assert 1.1 < found.relative_step_flops < 1.5
    assert found.step_flops / found.relative_step_flops == pytest.approx(peak.flops / 4)
    assert any(getattr(m, "grad_checkpointing", False) for m in model.modules())


def test_a_model_with_weights_stays_as_it_is_and_is_not_copied() -> None:
    model = timm.create_model("vit_small_patch16_224", num_classes=10)
    s2a.fits("vit_tiny_patch16_224", s2a.method_config("linear"), "64MB", num_classes=3)  # everything is loaded
    before, state = testing.snapshot(model), torch.get_rng_state()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = s2a.fits(model, s2a.method_config("bias"), "4GiB")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024
    assert found.batch_size > 32
    assert grown < 60e6 < sum(p.numel() * 4 for p in model.parameters())
    assert not testing.differences(before, testing.snapshot(model))
    assert torch.equal(state, torch.get_rng_state())


def test_names_and_models_agree() -> None:
    config = s2a.method_config("bias")
    named = s2a.fits("vit_tiny_patch16_224", config, "200MB", num_classes=7, image_size=64)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    assert named == s2a.fits(model, config, "200MB", num_classes=7)


@pytest.mark.parametrize(
    ("budget", "word"),
    [("8 elephants", "8GiB"), ("0GiB", "8GiB"), (0, "at least 1 byte"), (-3, "at least 1 byte"), (1.5, "8GiB")],
)
def test_a_budget_that_is_none(budget: Any, word: str) -> None:
    with pytest.raises(s2a.S2AError, match=word):
        s2a.fits("resnet10t", s2a.method_config("linear"), budget)


def test_budgets() -> None:
    assert budget_bytes("8GiB") == budget_bytes(8 * 2**30) == budget_bytes(str(8 * 2**30))
    assert budget_bytes("320MB") == 320 * 10**6
    if not torch.cuda.is_available():
        with pytest.raises(s2a.S2AError, match="give a size as in 8GiB"):
            budget_bytes("free")


def test_bad_input() -> None:
    linear = s2a.method_config("linear")
    with pytest.raises(s2a.S2AError, match="no model 'vit_of_nobody'"):
        s2a.fits("vit_of_nobody", linear, "1GiB")
    with pytest.raises(s2a.S2AError, match="not int"):
        s2a.fits(3, linear, "1GiB")  # type: ignore[arg-type]
    with pytest.raises(s2a.S2AError, match="leave peak_budget"):
        s2a.fits("resnet10t", s2a.method_config("s2a", activations="lean", peak_budget="1GiB"), "1GiB")
    with pytest.raises(s2a.S2AError, match="batch_sizes"):
        s2a.fits("resnet10t", linear, "1GiB", batch_sizes=[0])
    make, size = tiny.MODELS["vit"]
    with pytest.raises(s2a.S2AError, match="already adapted"):
        s2a.fits(s2a.attach(make(), linear, 3, image_size=size).backbone, linear, "1GiB")


# What makes a simulation fast changes nothing


@pytest.mark.parametrize(
    ("model", "method", "options"),
    split_rings(
        [
            ("vit", "s2a", {"activations": "lean"}),
            ("swin", "full", {"activations": "lean"}),
            ("vit", "s2a", {}),
            ("resnet", "full", {"activations": "lean"}),
            ("convnext", "adapter", {"activations": "lean"}),
        ],
        fast=[("vit", "s2a", {"activations": "lean"})],
    ),
)
def test_shortened_loops_and_remembered_results_give_the_same_peak(
    model: str, method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a batch of many chunks: against every turn of every loop, every call and every operator run."""
    make, size = tiny.MODELS[model]
    # The last of a ViT's blocks computes the class token's row alone: with four blocks three are alike.
    backbone = tiny.vit(depth=4) if model == "vit" else make()
    adapted = s2a.attach(backbone, s2a.method_config(method, **options), 5, image_size=size)
    batch = 203 if model != "swin" else 101
    left_out: set[str] = set()
    again, shorten = repeats.again, Ledger.shorten

    def noted_again(*given: Any) -> Any:
        left_out.add("calls")
        return again(*given)

    def noted_shorten(self: Ledger, parts: Any, keeps: bool) -> Any:
        some = shorten(self, parts, keeps)
        left_out.update(["turns"] if some is not parts else [])
        return some

    with monkeypatch.context() as patch:
        patch.setattr(repeats, "again", noted_again)
        patch.setattr(Ledger, "shorten", noted_shorten)
        fast = s2a.simulated_peak(adapted, batch)
    assert left_out >= ({"calls", "turns"} if model == "vit" and options else set())
    monkeypatch.setattr(Ledger, "shorten", lambda self, parts, keeps: parts)
    monkeypatch.setattr(replay, "key_of", lambda func, args, kwargs: None)
    monkeypatch.setattr(Ledger, "once", lambda self, function, args: function(*args))
    slow = s2a.simulated_peak(adapted, batch)
    for name in ("total", "phase", "categories", "phases", "after_forward", "held", "flops"):
        assert getattr(fast, name) == getattr(slow, name), name
    assert [live.bytes for live in fast.largest] == [live.bytes for live in slow.largest]


def _calls_on_meta() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """A call or more of every operator that runs on the meta device, with layouts that could make a difference."""
    aten = torch.ops.aten
    layouts = [torch.randn(4, 6, 8), torch.randn(4, 8, 6).mT, torch.randn(8, 6, 4)[::2].expand(4, 6, 4)]
    layouts += [torch.randn(1, 6, 8), torch.randn(4, 12, 8)[:, ::2], torch.randn(4, 6, 8).bfloat16()]
    for x in layouts:
        whole = x.contiguous()
        yield aten.view.default, (whole, [-1, x.shape[2]])
        yield aten._unsafe_view.default, (whole, [x.numel()])
        yield aten.view.default, (x, [x.shape[0], 1, *x.shape[1:]])
        yield aten.slice.Tensor, (x, 1, 1, 5, 2)
        yield aten.slice.Tensor, (x, 0, 0, 9223372036854775807)
        yield aten.select.int, (x, 1, -1)
        yield aten.permute.default, (x, [2, 0, 1])
        yield aten.transpose.int, (x, -2, -1)
        yield aten.t.default, (x[0],)
        yield aten.expand.default, (x[:1], [5, -1, -1])
        yield aten.unbind.int, (x, 1)
        yield aten.unsqueeze.default, (x, 1)
        yield aten.squeeze.dim, (x, 0)
        yield aten.detach.default, (x,)
        for name in ("add", "add_", "mul", "mul_", "sub", "div", "div_"):
            own = whole if name.endswith("_") else x
            for other in (whole, x[:, :1], 2.5, torch.randn(x.shape[2]), torch.randn(())):
                yield getattr(aten, name).Tensor, (own, other)
        yield aten.add.Tensor, (x, torch.randn(x.shape, dtype=torch.double))
        yield aten.copy_.default, (whole, x.float())
        yield aten.clone.default, (x,)
        yield aten.roll.default, (x, [1, -1], [0, 1])
        yield aten.bernoulli_.float, (whole, 0.5)
        yield aten.new_empty.default, (x, [3, 0, 5])
        yield aten.gelu_backward.default, (x, x)
        yield aten.mm.default, (x[0], x[0].t())
        yield aten.addmm.default, (x[0, 0, : x.shape[1]].new_zeros(x.shape[1]), x[0], x[0].t())
        yield aten.bmm.default, (x, x.mT)
        for dims in ([0], [0, 1], [-1]):
            yield aten.sum.dim_IntList, (x, dims)
            yield aten.mean.dim, (x, dims, True)
        yield aten._softmax.default, (x, -1, False)
        yield aten._softmax_backward_data.default, (x, x, -1, x.dtype)


def test_the_meta_device_says_what_fake_tensors_do() -> None:
    """Shapes, strides, offsets, dtypes and storages of results, against running the operator under the mode alone."""
    seen = set()
    with FakeTensorMode() as mode:
        for func, args in _calls_on_meta():
            seen.add(func)
            expected = func(*args)
            replay._results.pop(replay.key_of(func, args, {}), None)
            found = replay.run(func, args, {}, mode)
            pairs = [(expected, found)] if isinstance(expected, torch.Tensor) else zip(expected, found, strict=True)
            for one, other in pairs:
                assert replay.described(one, args) == replay.described(other, args), (func, args)
    assert seen == replay.ON_META


def test_a_second_step_that_differs_is_simulated() -> None:
    """What a model keeps from its first step is there in the second."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.kept = nn.Linear(256, 256), None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.kept is None:
                self.kept = x.new_zeros(1024, 1024)
            return self.layer(x)

    one, two = (s2a.simulated_peak(Keeps(), 2, input_shape=(256,), steps=n) for n in (1, 2))
    assert one.after_forward + 8 * 256 * 256 <= two.after_forward
    assert two.after_forward >= 4 * 1024 * 1024


def test_a_simulation_of_several_batches_is_one_of_each() -> None:
    make, size = tiny.MODELS["vit"]
    adapted = s2a.attach(make(), s2a.method_config("lora", activations="lean"), 5, image_size=size)
    step = StepSimulation(adapted)
    for batch in (3, 70, 2):
        assert step.peak(batch) == s2a.simulated_peak(adapted, batch)


@pytest.mark.parametrize("sizes", [5, [], [0], [2.5], "8"])
def test_batch_sizes_of_the_wrong_type(sizes: Any) -> None:
    with pytest.raises(s2a.S2AError, match="batch_sizes="):
        s2a.fits("resnet10t", s2a.method_config("linear"), "1GiB", batch_sizes=sizes)

"""What paged weights take on the device: nothing but copies, of which few are there at once."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
from fake_cuda import FakeCuda
from s2a.memory import strip_data, tensors_without_data
from s2a.paging import Pager, page_of, paged_weights, pager
from torch import Tensor, nn

BATCH = 3


def make(activations: str, method: str = "s2a", family: str = "vit") -> s2a.Adapted:
    model, size = tiny.MODELS[family]
    config = s2a.method_config(method, activations=activations)
    return s2a.attach(model(), config, tiny.CLASSES, image_size=size).train()


def rounded(weights: Any) -> int:
    """Bytes as an allocator of blocks of 512 gives them out."""
    return sum(-(-w.numel() * w.element_size() // 512) * 512 for w in weights)


@pytest.mark.parametrize("family", ["vit", "swin", "convnext_conv"])
@pytest.mark.parametrize("activations", ["exact", "lean"])
def test_a_simulation_counts_what_is_resident(activations: str, family: str) -> None:
    adapted = make(activations, family=family)
    before = s2a.simulated_peak(adapted, BATCH)
    s2a.page_frozen(adapted, least_bytes=0)
    gone = rounded(paged_weights(adapted))
    largest = max(w.numel() * w.element_size() for w in paged_weights(adapted))
    found = s2a.simulated_peak(adapted, BATCH)
    early = copy.deepcopy(adapted)
    s2a.unpage_frozen(early)
    s2a.page_frozen(early, least_bytes=0, prefetch=True)
    foreseen = s2a.simulated_peak(early, BATCH)
    for each in (found, foreseen):
        assert before.categories["weights"] - each.categories["weights"] == gone
        assert each.held == before.held  # No copy outlives the forward pass.
    # With the loss, the weights alone are gone; at the peak there may be copies beside it: a branch's, and the next.
    assert before.after_forward - found.after_forward == before.after_forward - foreseen.after_forward == gone
    assert 0 <= found.total - (before.total - gone) <= 2 * largest
    assert found.total <= foreseen.total <= found.total + largest


@pytest.mark.parametrize("prefetch", [None, True, False])
def test_a_simulation_without_data_is_that_of_the_model(prefetch: bool | None) -> None:
    """Without data it stands for one on a card, where the next copy is made early unless somebody says otherwise."""
    with_data = make("lean")
    s2a.page_frozen(with_data, prefetch=prefetch is not False, least_bytes=0)
    expected = s2a.simulated_peak(with_data, BATCH)
    with tensors_without_data():
        model = tiny.vit()
        strip_data(model)
        config = s2a.method_config("s2a", activations="lean")
        adapted = s2a.attach(model, config, tiny.CLASSES, image_size=32)
        s2a.page_frozen(adapted, prefetch=prefetch, least_bytes=0)
        assert s2a.host_bytes(adapted) == s2a.host_bytes(with_data) > 0
        found = s2a.simulated_peak(adapted, BATCH)
        assert found.categories == expected.categories
        assert found.total == s2a.simulated_peak(adapted, BATCH).total
        s2a.unpage_frozen(adapted)
        assert s2a.simulated_peak(adapted, BATCH).total > found.total
    # With data it is on the device that it is on.
    s2a.unpage_frozen(with_data)
    s2a.page_frozen(with_data, least_bytes=0)
    on_cpu = s2a.simulated_peak(with_data, BATCH).total
    assert on_cpu == found.total if prefetch is False else on_cpu < found.total


@pytest.mark.parametrize("activations", ["exact", "lean"])
def test_other_figures_leave_paged_weights_out(activations: str) -> None:
    adapted, images = make(activations), lean_models.images_for("vit")
    saved, theory = s2a.saved_bytes(adapted, images), s2a.theoretical_memory(adapted, BATCH)
    plan = adapted.plan
    s2a.page_frozen(adapted, least_bytes=0)
    host = s2a.host_bytes(adapted)
    assert s2a.saved_bytes(adapted, images) == saved
    paged = s2a.theoretical_memory(adapted, BATCH)
    assert theory.weights - paged.weights == host and theory.rules == paged.rules
    if plan is not None:
        assert plan.predicted - s2a.plan_memory(adapted).predicted == host


class Copies:
    """Notes copies as they are made: how many there were, and how many at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = self.most = 0
        self._there: weakref.WeakSet[Tensor] = weakref.WeakSet()
        make = pager._copied

        def copied(weight: Tensor, device: torch.device) -> Tensor:
            copy = make(weight, device)
            self._there.add(copy)
            self.made, self.most = self.made + 1, max(self.most, len(self._there))
            return copy

        monkeypatch.setattr(pager, "_copied", copied)

    @property
    def there(self) -> int:
        return len(self._there)


@pytest.mark.parametrize(("activations", "at_once"), [("exact", 1), ("lean", 2)])
def test_copies_are_few_and_none_is_made_in_vain(
    monkeypatch: pytest.MonkeyPatch, activations: str, at_once: int
) -> None:
    images, needed = lean_models.images_for("vit"), []
    for prefetch in (False, True):
        adapted, copies = make(activations), Copies(monkeypatch)
        s2a.page_frozen(adapted, least_bytes=0, prefetch=prefetch)
        lean_models.gradients(adapted, images)
        first = copies.made
        lean_models.gradients(adapted, images)
        needed.append((first, copies.made - first))
        assert copies.most == at_once + prefetch
        assert copies.there == 0
    # Foreseen or not, a step makes as many copies: those of layers forward, and backward of all but the first.
    (plain, plain_again), (_, foreseen) = needed
    assert plain == plain_again == foreseen


def test_a_wrong_guess_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, layers = Copies(monkeypatch), [nn.Linear(2, 2) for _ in range(3)]
    own = Pager(True, pins=False)
    own.layers += layers
    for order in ((0, 1, 2), (0, 2, 1), (0, 1, 2)):
        own.begin(nn.Identity(), ())
        for i in order:
            found = own.fetch(i, layers[i].weight, torch.device("cpu"), torch.float32)
            assert torch.equal(found, layers[i].weight) and found.data_ptr() != layers[i].weight.data_ptr()
            del found
            assert copies.there <= 1
    own.begin(nn.Identity(), ())
    assert copies.there == 0


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An early copy waits for what is queued, and whoever takes or drops it waits for the copy."""
    fake = FakeCuda()
    monkeypatch.setattr(pager, "cuda", fake)
    monkeypatch.setattr(pager, "_is_asynchronous", lambda home, device: True)
    layers = [nn.Linear(2, 2) for _ in range(2)]
    own = Pager(True, pins=False)
    own.layers += layers

    def run(*order: int) -> None:
        own.begin(nn.Identity(), ())
        for i in order:
            found = own.fetch(i, layers[i].weight, torch.device("cpu"), torch.float32)
            assert torch.equal(found, layers[i].weight)

    run(0, 1)
    assert fake.log == []
    # What is queued (1) comes before the copy, whose end (2) is waited for where it is used.
    run(0, 1)
    started = [("compute", "records", 1), ("side", "waits for", 1), ("side", "records", 2)]
    assert fake.log == [*started, ("compute", "waits for", 2)]
    # A copy that nobody takes is waited for before its bytes are free.
    fake.log.clear()
    run(0)
    run()
    dropped = [("side", "records", 4), ("compute", "waits for", 4)]
    assert fake.log == [("compute", "records", 3), ("side", "waits for", 3), *dropped]


def test_data_parallel_leaves_homes_alone() -> None:
    adapted = make("lean")
    s2a.page_frozen(adapted)
    ignored = set(adapted._ddp_params_and_buffers_to_ignore)
    homes = {id(weight) for weight in paged_weights(adapted)}
    assert ignored == {name for name, p in adapted.named_parameters() if id(p) in homes}
    s2a.unpage_frozen(adapted)
    assert not hasattr(adapted, "_ddp_params_and_buffers_to_ignore")
    assert not any(page_of(module) for module in adapted.modules())

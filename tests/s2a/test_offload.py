"""Codes in host memory between the passes: the same gradients, and less on the device by so many bytes."""

from __future__ import annotations

import copy
import functools
import io
import weakref
from collections.abc import Sequence
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
from fake_cuda import FakeCuda
from s2a.lean import SavedBits, linear
from s2a.memory import SavedBytes, saved_bytes
from s2a.memory.ledger import Ledger
from s2a.ops import offload
from s2a.ops.offload import load, offloading, paused, save
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

BATCH = 3


def make(family: str = "vit", method: str = "s2a", **changes: Any) -> s2a.Adapted:
    """A tiny model under a method with lean activations, no trained value as at the start."""
    torch.manual_seed(0)
    name, options = lean_models.METHODS[method]
    model, size = tiny.MODELS[family]
    config = s2a.method_config(name, **options, activations="lean", **changes)
    adapted = s2a.attach(model(), config, tiny.CLASSES, image_size=size)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return adapted.train()


def gradients(adapted: Any, images: Tensor, called: Any = None) -> dict[str, Tensor]:
    """Of one step; dropped paths are the same in every call."""
    torch.manual_seed(1)
    return lean_models.gradients(adapted, images, called)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def assert_sent(found: SavedBytes, kept: SavedBytes) -> None:
    """What lies in host memory, and nothing else, is gone from the device."""
    assert kept.host == 0 < found.host == kept.total - found.total
    assert all(found.within.get(name, 0) <= size for name, size in kept.within.items())


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(2)
    return lean_models.images_for("vit")


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, method) for family in ("vit", "swin", "convnext") for method in ("s2a", "bias", "lora")),
        ("resnet", "s2a"),
        pytest.param("convnext_conv", "s2a", marks=pytest.mark.full),
        pytest.param("eva", "s2a", marks=pytest.mark.full),
        pytest.param("vit", "full", marks=pytest.mark.full),
    ],
)
def test_gradients_are_those_of_codes_on_the_device(family: str, method: str) -> None:
    kept, sent = make(family, method), make(family, method, offload=True)
    batch = lean_models.images_for(family)
    assert_sent(saved_bytes(sent, batch), saved_bytes(kept, batch))
    assert_equal(gradients(sent, batch), gradients(kept, batch))


def test_a_whole_block_again(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CHUNK", 1)  # One image in a chunk.
    kept, sent = make(in_place=True), make(in_place=True, offload=True)
    for branch in (*kept._branches, *sent._branches):
        branch.saved_bits = SavedBits(10, 0, 10)
    assert_sent(saved_bytes(sent, images), saved_bytes(kept, images))
    assert_equal(gradients(sent, images), gradients(kept, images))


def test_accumulation_autocast_and_two_backward_passes(images: Tensor) -> None:
    found = []
    for adapted in (make(), make(offload=True)):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            for part in images.split(1):
                lean_models.loss_of(adapted(part)).backward()
            loss = lean_models.loss_of(adapted(images))
        for keep in (True, True, False):  # The codes come back as often as they are asked for.
            loss.backward(retain_graph=keep)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        found.append({n: p.grad for n, p in s2a.trainable_parameters(adapted).items() if p.grad is not None})
    assert_equal(found[1], found[0])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(images: Tensor, reentrant: bool, whole: bool) -> None:
    found = []
    for adapted in (make(), make(offload=True)):
        run: Any = functools.partial(checkpoint, adapted, use_reentrant=reentrant) if whole else adapted
        for block in [] if whole else adapted.backbone.blocks:  # type: ignore[union-attr]
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=reentrant)
        torch.manual_seed(1)
        lean_models.loss_of(run(images.clone().requires_grad_())).backward()
        found.append({n: p.grad for n, p in s2a.trainable_parameters(adapted).items() if p.grad is not None})
    assert found[0]
    assert_equal(found[1], found[0])


def test_hooks_from_outside(images: Tensor) -> None:
    """Around the model they see the copies; inside of it nothing else is done."""
    kept, sent = make(), make(offload=True)
    expected, alone = gradients(kept, images), saved_bytes(sent, images)
    with save_on_cpu():
        assert_equal(gradients(sent, images), expected)
    block: Any = sent.backbone.blocks[0]  # type: ignore[index,union-attr]
    own = block.forward

    def forward(*args: Any) -> Any:
        with save_on_cpu():
            return own(*args)

    block.forward = forward
    assert_equal(gradients(sent, images), expected)
    assert 0 < saved_bytes(sent, images).host < alone.host


def test_copies_and_pickles(images: Tensor) -> None:
    expected, sent = gradients(make(), images), make(offload=True)
    gradients(sent, images)
    buffer = io.BytesIO()
    torch.save(sent, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(sent), torch.load(buffer, weights_only=False)):
        assert copied.config.offload
        assert saved_bytes(copied, images).host == saved_bytes(sent, images).host > 0
        assert_equal(gradients(copied, images), expected)


@pytest.mark.full
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_keeps_its_codes(images: Tensor) -> None:
    kept, sent = make("vit", "bias"), make("vit", "bias", offload=True)
    torch._dynamo.reset()
    try:
        expected = gradients(kept, images, torch.compile(kept, backend="aot_eager"))
        compiled = torch.compile(sent, backend="aot_eager", fullgraph=True)
        assert_equal(gradients(sent, images, compiled), expected)
        # Blocks that are compiled in a model that is not.
        for adapted in (kept, sent):
            for block in adapted.backbone.blocks:  # type: ignore[union-attr]
                block.compile(backend="aot_eager")
        assert_equal(gradients(sent, images), gradients(kept, images))
    finally:
        torch._dynamo.reset()


def test_plans_are_those_without(images: Tensor) -> None:
    kept, sent = make(), make(offload=True)
    assert s2a.plan_memory(sent) == s2a.plan_memory(kept)
    least = s2a.plan_memory(kept).smallest / 1e6 + 0.001
    assert s2a.plan_memory(sent, least) == s2a.plan_memory(kept, least)
    assert_equal(gradients(sent, images), gradients(kept, images))
    peak = f"{s2a.simulated_peak(kept, BATCH).total + 1000}B"
    planned = s2a.plan_memory(kept, peak_budget=peak, batch_size=BATCH)
    assert s2a.plan_memory(sent, peak_budget=peak, batch_size=BATCH) == planned
    assert s2a.simulated_peak(sent, BATCH).total <= (planned.peak or 0)


class Copies:
    """Notes the codes on the device of every call as they come: how many bytes of how many calls are there at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._there: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self._of: dict[int, int] = {}
        self.calls = self.sent = self.fetched = self.most = 0
        send, back = offload._Pass.send, offload._copy_back

        def sends(run: Any, kept: Sequence[Tensor]) -> Any:
            self.sent += 1
            self._note(kept)
            return send(run, kept)

        def copy_back(hosts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
            found = back(hosts, device)
            self.fetched += 1
            self._note(found)
            return found

        monkeypatch.setattr(offload._Pass, "send", sends)
        monkeypatch.setattr(offload, "_copy_back", copy_back)

    def _note(self, tensors: Sequence[Tensor]) -> None:
        self.calls += 1
        for tensor in tensors:
            self._there.add(tensor)
            self._of[id(tensor)] = self.calls
        self.most = max(self.most, self.there)

    @property
    def there(self) -> int:
        """Calls that have codes on the device."""
        return len({self._of[id(tensor)] for tensor in self._there})


@pytest.mark.parametrize("family", ["vit", "convnext", "swin"])
def test_codes_of_two_calls_are_on_the_device_at_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, batch = make(family, offload=True), lean_models.images_for(family)
    copies = Copies(monkeypatch)
    loss = lean_models.loss_of(adapted(batch))
    calls = copies.sent
    assert (copies.there, copies.most, copies.fetched) == (0, 2, 0) and calls >= 4
    for i in range(1, 3):
        loss.backward(retain_graph=i == 1)
        assert (copies.there, copies.most, copies.sent, copies.fetched) == (0, 2, calls, i * calls)
    assert not offload._sent  # Freed with the graph, though the loss is there.


def test_what_is_held_by_a_graph_alone_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose graph is gone is passed over, and no copy is made for it."""
    copies = Copies(monkeypatch)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            save(ctx, (), (x * 2,))
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            (kept,) = load(ctx)
            return kept + grad

    x = torch.ones(3, requires_grad=True)
    with offloading():
        a = Twice.apply(x)
        Twice.apply(x)  # Its graph is let go.
        b = Twice.apply(a)
        with paused():
            c = Twice.apply(b)
    assert copies.sent == 3
    (found,) = torch.autograd.grad(c.sum(), x)  # 1, + 8, + 4, + 2
    assert torch.equal(found, torch.full((3,), 15.0))
    assert copies.fetched == 2 and copies.there == 0


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_a_simulation_counts_what_is_on_the_device(family: str) -> None:
    kept, sent = make(family), make(family, offload=True)
    batch = lean_models.images_for(family, BATCH)
    before, after = s2a.simulated_peak(kept, BATCH), s2a.simulated_peak(sent, BATCH)
    host = saved_bytes(sent, batch).host
    # Every storage is rounded up to blocks of 512 bytes.
    assert host <= before.held - after.held == before.after_forward - after.after_forward
    assert before.held - after.held < host * 1.3
    assert after.total <= before.total and after.flops == before.flops
    assert after.categories["weights"] == before.categories["weights"]


def test_a_shortened_simulation_is_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CHUNK", 1)  # One image in a chunk: 8 turns of every loop, of which 3 are run.
    adapted = make("vit", "bias", offload=True)
    short = s2a.simulated_peak(adapted, 8)
    monkeypatch.setattr(Ledger, "shorten", lambda self, parts, keeps: parts)
    monkeypatch.setattr(Ledger, "once", lambda self, function, args: function(*args))
    whole = s2a.simulated_peak(adapted, 8)
    assert (short.total, short.phases, short.held) == (whole.total, whole.phases, whole.held)


def test_paged_weights_and_offloaded_codes(images: Tensor) -> None:
    adapted = make(offload=True)
    expected, before = gradients(adapted, images), s2a.simulated_peak(adapted, BATCH)
    s2a.page_frozen(adapted, least_bytes=0, prefetch=True)
    for _ in range(2):
        assert_equal(gradients(adapted, images), expected)
    assert s2a.simulated_peak(adapted, BATCH).held == before.held


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy waits for what is queued; whoever uses its result, or gives its bytes away, waits for the copy."""
    fake = FakeCuda()
    monkeypatch.setattr(offload, "cuda", fake)
    monkeypatch.setattr(offload, "_streams", {})
    monkeypatch.setattr(offload, "_is_asynchronous", lambda tensor, device: True)
    monkeypatch.setattr(offload, "_pinned", torch.empty_like)

    def started(event: int) -> list[tuple[str, str, int]]:
        return [("compute", "records", event), ("side", "waits for", event), ("side", "records", event + 1)]

    run = offload._Pass()
    a, b = torch.arange(3.0), torch.arange(5)
    # 1. Out: a's bytes are given away, after its copy (2), when b is there, and b's (4) when the pass ends.
    hosts_a, first = run.send([a])
    assert fake.log == started(1)
    hosts_b, second = run.send([b])
    assert fake.log[3:] == [("compute", "waits for", 2), *started(3)]
    run.settle()
    assert fake.log[7:] == [("compute", "waits for", 4)]
    # 2. Back: b is asked for, and a is started (5, 6); who asks for a waits for that copy.
    fake.log.clear()
    assert torch.equal(second.fetch(hosts_b)[0], b)
    assert fake.log == started(5)
    assert torch.equal(first.fetch(hosts_a)[0], a)
    assert fake.log[3:] == [("compute", "waits for", 6)]
    # 3. A copy that nobody takes is waited for before its bytes are free.
    fake.log.clear()
    second.fetch(hosts_b)
    first.early = None
    assert fake.log == [*started(7), ("compute", "waits for", 8)]

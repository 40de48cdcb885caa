"""``s2a.MultiTask`` in use: tasks come and go beside calls, errors stay where they are, bad input is said."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import torch
from multitask_models import backbone, close, images, make, trained
from s2a.backbones import calls

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def fails(*_: Any) -> None:
    raise RuntimeError("out of memory, say")


def test_an_error_in_one_pass_ends_the_call_and_nothing_else() -> None:
    multi, own, _ = make(["s2a", "lora", "bias"])
    batch = images(3)
    wanted = multi(batch, list(own))
    form = multi.tasks["lora"]._form
    handles = [module.register_forward_hook(fails) for module in form._idle[False]]
    assert handles
    with pytest.raises(RuntimeError, match="out of memory"):
        multi(batch, list(own))
    assert calls._stack.entries == []
    for handle in handles:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(multi(batch, list(own)), wanted, strict=True))


def test_a_task_may_go_while_its_pass_runs() -> None:
    multi, own, _ = make(["s2a", "bias"])
    batch = images(2)
    wanted = multi(batch, ["s2a", "bias"])

    def remove(*_: Any) -> None:
        if "bias" in multi.tasks:
            multi.remove("bias")

    multi.tasks["bias"]._head.register_forward_pre_hook(remove)
    held = multi.tasks
    assert all(torch.equal(a, b) for a, b in zip(multi(batch, list(own)), wanted, strict=True))
    assert list(multi.tasks) == ["s2a"] and list(held) == ["s2a", "bias"]
    with pytest.raises(s2a.S2AError, match=r"no task 'bias'; there are: 's2a'"):
        multi(batch, "bias")


def test_a_task_is_replaced_whole() -> None:
    multi, own, model = make(["s2a", "bias"])
    batch, other = images(2), trained(model, "lora", 9)
    with pytest.raises(s2a.S2AError, match="there is a task 'bias' already"):
        multi.add("bias", other)
    multi.add("bias", other, replace=True)
    with torch.no_grad():
        assert close(multi(batch, ["s2a", "bias"])[1], other(batch[1:])[0])
    assert close(multi(batch, "s2a"), own["s2a"](batch))


def test_threads_add_remove_and_ask() -> None:
    """Every answer is that of the task's own model, whatever comes and goes beside it."""
    multi, own, model = make(["s2a", "lora", "vpt"])
    others = {f"other{i}": trained(model, "bias", 4) for i in range(3)}
    batch = images(6)
    names = [*own, *own]
    wanted = multi(batch, names)
    faults: list[str] = []
    end = threading.Event()

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not end.is_set():
                    work()
            except Exception as error:
                faults.append(repr(error))

        return run

    def ask() -> None:
        if not all(close(a, b) for a, b in zip(multi(batch, names), wanted, strict=True)):
            faults.append("another answer")

    def change() -> None:
        for name, adapted in others.items():
            multi.add(name, adapted)
        for name in others:
            multi.remove(name)

    threads = [threading.Thread(target=guarded(work)) for work in (ask, ask, ask, change)]
    for thread in threads:
        thread.start()
    end.wait(3)
    end.set()
    for thread in threads:
        thread.join()
    assert faults == [] and set(multi.tasks) - set(others) == set(own)


def test_tasks_that_are_added_at_once_share_a_form() -> None:
    model = backbone()
    multi, adapted = s2a.MultiTask(model), trained(model, "bias", 3)
    threads = [threading.Thread(target=multi.add, args=(f"task{i}", adapted)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(multi.tasks) == 4 and len({task._form for task in multi.tasks.values()}) == 1


def test_full_fine_tuning_is_refused() -> None:
    model = backbone()
    with pytest.raises(s2a.S2AError, match=r"'full' trained all weights of its backbone.*nothing to share"):
        s2a.MultiTask(model).add("full", trained(model, "full", 3))


def test_other_weights_are_refused() -> None:
    model = backbone()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[0].mlp.fc1.weight.add_(0.1)
    multi = s2a.MultiTask(model)
    with pytest.raises(s2a.StateMismatch, match=r"1 of .* tensors differ"):
        multi.add("a", trained(other, "bias", 3))
    assert not multi.tasks
    with pytest.raises(s2a.StateMismatch, match=r"^the model for task 'a' was trained on"):
        multi.add("a", trained(other, "bias", 3))


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda multi: multi.add("", "folder"), "name='' must be a text"),
        (lambda multi: multi.add(3, "folder"), "name=3 must be a text"),
        (lambda multi: multi.add("a", "no/such/folder"), "no folder no/such/folder"),
        (lambda multi: multi.add("a", 3), "takes a folder or a hub id, .* not int"),
        (lambda multi: multi.add("a", None), "not NoneType"),
        (lambda multi: multi.add("a", backbone()), "takes what s2a.attach returned, not VisionTransformer"),
        (lambda multi: multi(images(2), None), "tasks must be a name, or a list"),
        (lambda multi: multi(images(2)[:, :1], "bias"), r"\(B, 3, H, W\), not \(2, 1, 32, 32\)"),
        (lambda multi: multi(images(2).double(), "bias"), "images are torch.float64, the backbone is torch.float32"),
        (lambda multi: multi(images(2).byte(), "bias"), "images are torch.uint8"),
        (lambda multi: multi(images(2).to("meta"), "bias"), "images are on meta, the backbone is on cpu"),
        (lambda multi: multi.remove("a"), r"no task 'a'; there are: 'bias'"),
        (lambda multi: multi(images(2), "a"), r"no task 'a'"),
        (lambda multi: multi(images(2), ["bias", "a"]), r"no task 'a'"),
        (lambda multi: multi(images(2), ["bias"]), "1 names of tasks for 2 images"),
        (lambda multi: multi(images(2), [None, "bias"]), "no task None"),
        (lambda multi: multi(images(2), [["bias"], "bias"]), r"no task \['bias'\]"),
        (lambda multi: multi(images(2)[0], "bias"), r"must be a tensor \(B, 3, H, W\), not \(3, 32, 32\)"),
        (lambda multi: multi([1, 2], "bias"), "not list"),
        (
            lambda multi: multi(images(2, "swin"), ["bias", "bias"]),
            "have 64x64 pixels, task 'bias' was",
        ),
    ],
)
def test_bad_input_is_one_sentence(act: Callable[[Any], Any], sentence: str) -> None:
    multi, _, _ = make(["bias"])
    with pytest.raises(s2a.S2AError, match=sentence):
        act(multi)
    assert list(multi.tasks) == ["bias"]


def test_an_empty_batch() -> None:
    multi, _, _ = make(["bias"])
    assert multi(images(0), []) == []


@pytest.mark.parametrize("given", ["vit", None])
def test_what_is_no_model(given: Any) -> None:
    with pytest.raises(s2a.S2AError, match="MultiTask takes a timm model"):
        s2a.MultiTask(given)


def test_an_adapted_backbone_is_refused() -> None:
    model = backbone()
    s2a.attach(model, s2a.method_config("bias"), 3, image_size=32)
    with pytest.raises(s2a.S2AError, match="already adapted by 'bias'"):
        s2a.MultiTask(model)

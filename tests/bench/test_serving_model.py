"""A replica without Ray's processes: right answers, shared passes, tasks that come, change and go."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s2a
import torch
from PIL import Image
from s2a_bench.cells.embedded import mini_vit
from s2a_bench.inference.predict import predictions
from s2a_bench.serving.model import Model
from s2a_bench.serving.reply import Reply
from s2a_bench.serving.request import Limits, ServeRequest

METHODS = {"birds": ("s2a", 3), "cars": ("lora", 4), "dogs": ("s2a", 5), "eggs": ("bias", 3)}


def save(folder: Path, name: str, seed: int = 0, side: int = 32) -> None:
    """An adapter folder of a task, with values as after training."""
    torch.manual_seed(seed)
    method, classes = METHODS[name]
    adapted = s2a.attach(mini_vit(), s2a.method_config(method), classes)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    image = {"size": side, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    s2a.save_pretrained(adapted, folder, labels=[f"{name} {seed} {k}" for k in range(classes)], image=image)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name in METHODS:
        save(folder / name, name)
    return folder


@pytest.fixture
def tasks(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "tasks")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Files of several sizes, one of them to be turned."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, size in enumerate([(50, 40), (33, 64), (32, 32)]):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6 if number == 1 else 1
        image.save(folder / f"{number}.png", exif=exif)
    return sorted(folder.iterdir())


@pytest.fixture(autouse=True)
def short_moments(monkeypatch):
    """What was loaded is held for long enough, and for no test to notice."""
    monkeypatch.setattr("s2a_bench.serving.model._MOMENT", 0.05)


@pytest.fixture
def loop():
    """One event loop for a replica's life, as it has in Serve."""
    with asyncio.Runner() as runner:
        yield runner


def make(tasks: Path, **fields: Any) -> Model:
    request = ServeRequest((), tasks, str(tasks / "birds"), **{"batch_size": 8, "batch_seconds": 0.2, **fields})
    return Model(request)


def ask(loop: asyncio.Runner, model: Model, *calls: tuple[str, list[Path]], top: int = 100) -> list[Reply]:
    """Replies to requests that are made at once."""

    async def all_at_once() -> list[Reply]:
        made = [
            model.predict(name, [path.read_bytes() for path in paths], [path.name for path in paths], top)
            for name, paths in calls
        ]
        return await asyncio.gather(*made)

    return loop.run(all_at_once())


def close(reply: Reply, folder: Path, paths: list[Path]) -> bool:
    """Whether a reply says what `s2a-bench predict` does."""
    wanted = list(predictions(s2a.from_pretrained(folder), [str(path) for path in paths], 100, 1))
    assert reply.kind == "ok" and len(reply.rows) == len(wanted)
    return all(
        [label for label, _ in row] == [label for label, _ in own.top]
        and all(abs(p - q) < 1e-5 for (_, p), (_, q) in zip(row, own.top, strict=True))
        for row, own in zip(reply.rows, wanted, strict=True)
    )


def test_requests_of_many_tasks_share_a_pass_and_each_has_the_answer_of_its_own_model(loop, tasks, images):
    model = make(tasks)
    ask(loop, model, *((name, images[:1]) for name in METHODS))  # loaded, one after the other
    replies = ask(loop, model, *((name, images[:2]) for name in METHODS))
    for name, reply in zip(METHODS, replies, strict=True):
        assert close(reply, tasks / name, images[:2]), name
        assert reply.batches == (8, 8)
    assert (replies[-1].loaded, {each.replica for each in replies}) == (4, {replies[0].replica})


def test_only_the_most_probable_classes_are_told(loop, tasks, images):
    (reply,) = ask(loop, make(tasks), ("dogs", images[:1]), top=2)
    (whole,) = ask(loop, make(tasks), ("dogs", images[:1]))
    assert reply.rows[0] == whole.rows[0][:2] and len(whole.rows[0]) == 5


def test_a_bad_image_is_named_and_harms_no_other_request(loop, tasks, images, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(images[0].read_bytes()[:100])
    refused, good = ask(loop, make(tasks), ("birds", [images[0], bad, bad]), ("cars", images[:1]))
    assert refused.kind == "bad" and len(refused.sentences) == 2 and "bad.jpg" in refused.sentences[0]
    assert close(good, tasks / "cars", images[:1])


def test_tasks_come_change_and_go_while_the_replica_runs(loop, tasks, images):
    model = make(tasks)
    (unknown,) = ask(loop, model, ("later", images[:1]))
    assert unknown.kind == "unknown"
    shutil.copytree(tasks / "cars", tasks / "later" / "adapter")
    (found,) = ask(loop, model, ("later", images[:1]))
    assert close(found, tasks / "cars", images[:1])
    save(tasks / ".new", "cars", seed=1)
    shutil.rmtree(tasks / "later")
    (tasks / ".new").rename(tasks / "later")
    (changed,) = ask(loop, model, ("later", images[:1]))
    assert close(changed, tasks / "later", images[:1]) and changed.rows[0][0][0].startswith("cars 1 ")
    shutil.rmtree(tasks / "later")
    (other,) = ask(loop, model, ("birds", images[:1]))  # a load looks for tasks that are there no more
    assert other.loaded == 1
    (gone,) = ask(loop, model, ("later", images[:1]))
    assert gone.kind == "unknown"


def test_an_adapter_that_cannot_be_served_is_said_and_the_others_answer(loop, tasks, images):
    state = tasks / "cars" / "adapter_model.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    broken, good = ask(loop, make(tasks), ("cars", images[:1]), ("birds", images[:1]))
    assert broken.kind == "unavailable" and broken.sentences[0].startswith("Task cars cannot be loaded: ")
    assert good.kind == "ok"


def test_logits_that_are_not_finite_are_no_answer(loop, tasks, images):
    adapted: Any = s2a.from_pretrained(tasks / "birds")
    with torch.no_grad():
        adapted.head.weight.fill_(3e38)
    s2a.save_pretrained(adapted, tasks / "cars", image={"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3})
    broken, good = ask(loop, make(tasks), ("cars", images[:1]), ("birds", images[:1]))
    assert broken.kind == "unavailable" and "not finite" in broken.sentences[0]
    assert close(good, tasks / "birds", images[:1])


def test_memory_of_tasks_is_kept_to_and_a_task_that_was_let_go_comes_back(loop, tasks, images):
    model = make(tasks, limits=Limits(task_bytes=1))
    for name in ("birds", "cars", "birds"):
        (reply,) = ask(loop, model, (name, images[:1]))
        loop.run(asyncio.sleep(0.1))
        (reply,) = ask(loop, model, (name, images[:1]))
        assert reply.loaded == 1 and close(reply, tasks / name, images[:1])


@pytest.mark.parametrize("where", ["load", "decode", "run"])
def test_a_request_that_is_given_up_holds_its_task_no_longer(loop, tasks, images, where):
    """Whatever it waits for then."""
    model: Any = make(tasks)
    owners = {"load": model._cache, "decode": model, "run": model._collector}
    owner, name = owners[where], {"load": "load", "decode": "_decode", "run": "_run"}[where]
    usual, begun, go_on = getattr(owner, name), threading.Event(), threading.Event()

    def blocked(*values: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return usual(*values)

    async def give_up() -> None:
        call = asyncio.create_task(model.predict("birds", [images[0].read_bytes()], ["a"], 1))
        await asyncio.to_thread(begun.wait, 10)
        call.cancel()
        assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], asyncio.CancelledError)
        go_on.set()
        for _ in range(200):
            if len(model._cache) and not any(entry.users for entry in model._cache._entries.values()):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the task is held for ever")

    setattr(owner, name, blocked)
    loop.run(give_up())
    setattr(owner, name, usual)
    (reply,) = ask(loop, model, ("birds", images[:1]))
    assert reply.kind == "ok" and not model._cache._former


def test_many_who_wait_for_a_task_wait_for_one_load_and_hold_up_no_other(loop, tasks, images):
    model: Any = make(tasks)
    usual, loads, go_on = model._cache.load, [], threading.Event()

    def load(place: Any) -> Any:
        loads.append(place.name)
        if place.name == "birds":
            go_on.wait(10)
        return usual(place)

    model._cache.load = load

    async def many() -> list[Reply]:
        image = images[0].read_bytes()
        waiting = [asyncio.create_task(model.predict("birds", [image], ["a"], 1)) for _ in range(20)]
        await asyncio.sleep(0)
        assert (await asyncio.wait_for(model.predict("cars", [image], ["a"], 1), 10)).kind == "ok"
        go_on.set()
        return await asyncio.gather(*waiting)

    assert {reply.kind for reply in loop.run(many())} == {"ok"}
    assert sorted(loads) == ["birds", "cars"]


def test_who_asks_after_a_replacement_gets_the_new_adapter_though_the_former_is_being_loaded(loop, tasks, images):
    model: Any = make(tasks)
    save(tasks / ".new", "cars", seed=1)
    usual, copied, go_on = model._cache.load, threading.Event(), threading.Event()

    def load(place: Any) -> Any:
        entry = usual(place)
        copied.set()
        go_on.wait(10)
        return entry

    model._cache.load = load

    async def replace() -> list[Reply]:
        image = images[0].read_bytes()
        before = asyncio.create_task(model.predict("cars", [image], ["a"], 1))
        await asyncio.to_thread(copied.wait, 10)
        (tasks / "cars").rename(tasks / ".former")
        (tasks / ".new").rename(tasks / "cars")
        after = asyncio.create_task(model.predict("cars", [image], ["a"], 1))
        await asyncio.sleep(0.1)
        go_on.set()
        return list(await asyncio.gather(before, after))

    replies = loop.run(replace())
    assert replies[1].rows[0][0][0].startswith("cars 1 ")
    assert {reply.kind for reply in replies} == {"ok"}


def test_backbone_of_is_the_plain_model_and_refuses_other_weights(tasks, tmp_path):
    model = s2a.backbone_of(tasks / "birds")
    own: Any = mini_vit()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True))
    with torch.no_grad():
        own.blocks[0].mlp.fc1.weight.add_(1.0)
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in own.state_dict().items()}, tmp_path / "other.safetensors")
    with pytest.raises(s2a.StateMismatch, match="other weights"):
        s2a.backbone_of(tasks / "birds", weights=tmp_path / "other.safetensors")

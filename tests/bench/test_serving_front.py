"""The HTTP address, with a stand-in for the models."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray Serve is not installed", allow_module_level=True)
pytest.importorskip("prometheus_client")

from bench.asgi import Answer, ask
from bench.fake_adapters import fake_adapter
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from s2a_bench.serving.front import Front
from s2a_bench.serving.reply import Reply
from s2a_bench.serving.request import Limits, ServeRequest

JPEG = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}
PREDICT = "/v1/tasks/birds/predict"
TOKEN = "0123456789abcdef0123"


_REPLY = Reply("ok", [[("owl", 0.75), ("jay", 0.25)]], batches=(3,))


class Pending:
    """A reply as Serve's handles give it: who waits for it and is cancelled has not cancelled it."""

    def __init__(self, reply: Any) -> None:
        self.reply = asyncio.ensure_future(reply)
        self.cancelled = False

    def __await__(self) -> Any:
        return asyncio.shield(self.reply).__await__()

    def cancel(self) -> None:
        self.cancelled = self.reply.cancel()


class Models:
    """Stands for a handle of the replicas: notes what it is asked, and answers what it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.given: list[Pending] = []
        self.answers = list(answers)
        self.predict = self.ping = self

    async def _give(self) -> Any:
        answer = self.answers.pop(0) if self.answers else _REPLY
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
            return _REPLY
        return answer

    def remote(self, *values: Any) -> Any:
        self.calls.append(values)
        self.given.append(Pending(self._give()))
        return self.given[-1]


@pytest.fixture
def serve(tmp_path):
    """``serve(models, **fields)`` gives a function that asks a front with the task birds."""
    fake_adapter(tmp_path / "tasks" / "birds")

    def start(models: Models, **fields: Any):
        request = ServeRequest((), tmp_path / "tasks", str(tmp_path / "tasks" / "birds"), **fields)
        app = Front(models, request).app()  # type: ignore[arg-type]
        return lambda *words, **more: asyncio.run(ask(app, *words, **more))

    return start


def post(serve, models: Models, body: bytes = b"bytes", path: str = PREDICT, headers=JPEG, **fields: Any) -> Answer:
    return serve(models, **fields)("POST", path, body, headers)


def test_an_image_is_given_to_the_models_and_their_answer_to_the_client(serve):
    models = Models()
    answer = post(serve, models, path=PREDICT + "?top=2")
    assert answer.status == 200
    assert models.calls == [("birds", [b"bytes"], ["of the body"], 2)]
    (found,) = answer.json["predictions"]
    assert (answer.json["task"], found["label"], found["probability"]) == ("birds", "owl", 0.75)
    assert found["top"] == [{"label": "owl", "probability": 0.75}, {"label": "jay", "probability": 0.25}]


def test_images_in_json_are_given_together(serve, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"of a file")
    models = Models(Reply("ok", [[("owl", 1.0)], [("jay", 1.0)]], batches=(2, 2)))
    images = [{"base64": base64.b64encode(b"one").decode()}, {"path": "a.jpg"}]
    answer = post(serve, models, json.dumps({"images": images}).encode(), headers=JSON, image_root=tmp_path)
    assert [each["label"] for each in answer.json["predictions"]] == ["owl", "jay"]
    assert models.calls[0][1:3] == ([b"one", b"of a file"], ["images[0]", "images[1]"])


def test_images_are_bounded_together_wherever_they_are(serve, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x" * 60)
    body = json.dumps({"images": [{"path": "a.jpg"}] * 2}).encode()
    models = Models()
    answer = post(serve, models, body, headers=JSON, image_root=tmp_path, limits=Limits(body_bytes=100))
    assert (answer.status, models.calls) == (413, []) and "100 bytes together" in answer.error


def test_a_request_is_given_to_another_replica_where_one_has_died(serve):
    models = Models(ActorDiedError(), ActorDiedError())
    assert post(serve, models).status == 200
    assert len(models.calls) == 3
    answer = post(serve, Models(*[ActorDiedError()] * 3))
    assert answer.status == 503 and "died" in answer.error and answer.headers["retry-after"]


def test_what_a_replica_refuses_has_its_status_and_its_sentences(serve):
    bad = post(serve, Models(Reply("bad", sentences=("Image a is empty.", "Image b is huge."))))
    assert (bad.status, bad.json["errors"]) == (422, ["Image a is empty.", "Image b is huge."])
    assert post(serve, Models(Reply("unavailable", sentences=("No.",)))).status == 503
    failed = post(serve, Models(Reply("failed", sentences=("The model failed.",))))
    assert (failed.status, failed.error) == (500, "The model failed.")
    # The folder is there, but not for the replica.
    assert "on all nodes" in post(serve, Models(Reply("unknown"))).error


def test_more_than_may_wait_are_turned_away(serve):
    answer = post(serve, Models(BackPressureError(num_queued_requests=7, max_queued_requests=7)))
    assert answer.status == 503 and "256 requests wait" in answer.error and answer.headers["retry-after"] == "1"


def test_who_lost_a_replica_keeps_the_place_that_it_had(serve):
    full = BackPressureError(num_queued_requests=7, max_queued_requests=7)
    models = Models(ActorDiedError(), full, full)
    assert post(serve, models).status == 200 and len(models.calls) == 4


def test_more_than_memory_is_meant_for_are_refused_before_they_send_their_images(serve, tmp_path):
    models = Models(*[0.5] * 8)
    request = ServeRequest((), tmp_path / "tasks", "", batch_size=1, limits=Limits(waiting=1))  # room for 1 + 4
    front = Front(models, request)

    async def storm() -> list[int]:
        app = front.app()
        calls = [asyncio.ensure_future(ask(app, "POST", PREDICT, b"x", JPEG)) for _ in range(8)]
        return sorted(answer.status for answer in await asyncio.gather(*calls))

    assert asyncio.run(storm()) == [200] * 5 + [503] * 3


def test_at_the_end_new_requests_are_refused_and_those_under_way_are_waited_for(serve, tmp_path):
    front = Front(Models(0.3), ServeRequest((), tmp_path / "tasks", ""))

    async def end() -> tuple[int, int]:
        app = front.app()
        first = asyncio.ensure_future(ask(app, "POST", PREDICT, b"x", JPEG))
        await asyncio.sleep(0.15)
        ending = asyncio.ensure_future(front.end())
        await asyncio.sleep(0)
        late = await ask(app, "POST", PREDICT, b"x", JPEG)
        await ending
        assert first.done()
        return (await first).status, late.status

    assert asyncio.run(end()) == (200, 503)


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:80", 200)])
def test_a_page_that_calls_its_own_name_loopback_gets_nothing(serve, host, status):
    assert post(serve, Models(), headers=JPEG | {"Host": host}).status == status
    for other in ("evil.example", "evil.example:8000", "[", "127.0.0.1.evil.example"):
        assert post(serve, Models(), headers=JPEG | {"Host": other}).status == 403
    authorised = JPEG | {"Host": "evil.example", "Authorization": f"Bearer {TOKEN}"}
    assert post(serve, Models(), headers=authorised, token=TOKEN).status == 200


def test_a_request_that_takes_too_long_is_given_up(serve):
    models = Models(5.0)
    answer = post(serve, models, limits=Limits(seconds=0.05))
    assert answer.status == 504 and "0.05 seconds" in answer.error
    assert models.given[0].cancelled  # in its replica too


def test_a_fault_of_ours_says_nothing_of_the_inside(serve):
    answer = post(serve, Models(ZeroDivisionError("secret")))
    assert answer.status == 500 and "secret" not in answer.error


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/v1/tasks/bird/predict", b"x", JPEG, 404),
        ("POST", "/v1/tasks/../predict", b"x", JPEG, 404),
        ("POST", "/v1/tasks/%2e%2e/predict", b"x", JPEG, 404),
        ("GET", "/nothing", b"", {}, 404),
        ("GET", PREDICT, b"", {}, 405),
        ("POST", "/health", b"", {}, 405),
        ("POST", PREDICT, b"", JPEG, 400),
        ("POST", PREDICT, b"x", {}, 415),
        ("POST", PREDICT, b"{", JSON, 400),
        ("POST", PREDICT + "?top=0", b"x", JPEG, 400),
        ("POST", PREDICT + "?top=-1", b"x", JPEG, 400),
        ("POST", PREDICT + "?top=0000000005" + "9" * 20, b"x", JPEG, 400),
        ("POST", PREDICT + "?top=" + "9" * 5000, b"x", JPEG, 400),
        ("POST", PREDICT + "?tpo=1", b"x", JPEG, 400),
        ("POST", PREDICT, b"x" * 101, JPEG, 413),
    ],
)
def test_bad_requests_reach_no_model_and_are_told_why(serve, method, path, body, headers, status):
    models = Models()
    answer = serve(models, limits=Limits(body_bytes=100))(method, path, body, headers)
    assert (answer.status, models.calls) == (status, [])
    assert answer.json["errors"] and answer.error.endswith((".", "?"))


def test_a_body_in_chunks_is_read_no_further_than_allowed(serve):
    endless = [b"x" * 60] * 1000
    assert serve(Models(), limits=Limits(body_bytes=100))("POST", PREDICT, endless, JPEG).status == 413


def test_an_unknown_task_is_told_what_is_near(serve):
    assert "did you mean birds?" in post(serve, Models(), path="/v1/tasks/bird/predict").error


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer " + TOKEN[:-1], "Basic " + TOKEN, TOKEN, "Bearer \xe9" + TOKEN]
)
def test_without_the_token_nothing_is_told(serve, given):
    models = Models()
    ask_it = serve(models, token=TOKEN)
    headers = JPEG | ({"Authorization": given} if given else {})
    for method, path in (("POST", PREDICT), ("GET", "/v1/tasks"), ("GET", "/v1/tasks/birds"), ("GET", "/metrics")):
        answer = ask_it(method, path, b"x", headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert not models.calls
    assert ask_it("GET", "/health").status == 200


def test_with_the_token_all_is_answered(serve):
    ask_it = serve(Models(), token=TOKEN)
    for scheme in ("Bearer", "bearer"):
        assert ask_it("POST", PREDICT, b"x", JPEG | {"Authorization": f"{scheme} {TOKEN}"}).status == 200


def test_health_says_whether_a_model_answers(serve):
    assert serve(Models(None))("GET", "/health").json == {"status": "ok"}
    assert serve(Models(ActorDiedError()))("GET", "/health").status == 503
    busy = BackPressureError(num_queued_requests=7, max_queued_requests=7)
    assert serve(Models(busy))("GET", "/health").status == 200


def test_many_who_ask_for_its_health_ask_the_models_once(serve, tmp_path):
    models = Models(0.2)
    app = Front(models, ServeRequest((), tmp_path / "tasks", "")).app()

    async def many() -> set[int]:
        return {each.status for each in await asyncio.gather(*(ask(app, "GET", "/health") for _ in range(50)))}

    assert (asyncio.run(many()), len(models.calls)) == ({200}, 1)


def test_tasks_are_those_of_the_folder_now(serve, tmp_path):
    ask_it = serve(Models())
    fake_adapter(tmp_path / "tasks" / "cars" / "adapter", labels=["a", "b"])
    found = {each["name"]: each for each in ask_it("GET", "/v1/tasks").json["tasks"]}
    assert found.keys() == {"birds", "cars"}
    assert ask_it("GET", "/v1/tasks/cars").json["labels"] == ["a", "b"]
    Path(tmp_path, "tasks", "cars", "adapter", "adapter_config.json").write_text("{")
    assert "cannot be read" in ask_it("GET", "/v1/tasks/cars").json["error"]
    assert ask_it("GET", "/v1/tasks/dogs").status == 404


def test_a_strange_config_is_no_fault(serve, tmp_path):
    ask_it = serve(Models())
    labels = ["\ud800", "b"]
    fake_adapter(tmp_path / "tasks" / "odd", labels=labels, num_classes=float("nan"), image=[1], method=None)  # type: ignore[arg-type]
    assert ask_it("GET", "/v1/tasks/odd").json["labels"] == labels
    assert ask_it("GET", "/v1/tasks").status == 200


def test_metrics_count_what_was_answered_and_refused(serve):
    ask_it = serve(Models(Reply("ok", [[("owl", 1.0)]], batches=(7,), replica="12", loaded=3, bytes=4096)))
    ask_it("POST", PREDICT, b"x", JPEG)
    ask_it("POST", PREDICT, b"", JPEG)
    ask_it("POST", "/v1/tasks/made-up-by-a-client/predict", b"x", JPEG)
    text = ask_it("GET", "/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['s2a_requests_total{status="200",task="birds"}'] == "1.0"
    assert lines['s2a_requests_total{status="400",task="birds"}'] == "1.0"
    assert lines['s2a_requests_total{status="404",task=""}'] == "1.0"
    assert (lines["s2a_batch_images_sum"], lines['s2a_tasks_loaded{replica="12"}']) == ("7.0", "3.0")
    assert "made-up" not in text

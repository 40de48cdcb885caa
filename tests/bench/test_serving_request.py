"""What a service is asked for: all mistakes at once, before torch and Ray are there."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
from bench.fake_adapters import fake_adapter, raw_adapter
from bench.web_site import closed_port
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.errors import InputError, InputErrors, sentences
from s2a_bench.serving.request import TOKEN_VARIABLE, Limits, ServeRequest, is_loopback, prepare_serve

TOKEN = "0123456789abcdef"
NO_TOKENS = ["", " ", TOKEN[1:], "0123456789 abcdef", "0123456789\tabcdef", f"{TOKEN}\n{TOKEN}", f"{TOKEN}ä", "\0" * 20]
NO_HOSTS = ["", "127.1", "0x7f.0.0.1", "LOCALHOST", "127.0.0.1:80", "nowhere.invalid", "größ..e", "\udcff", "a\0b"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """Two adapters of one backbone, one of another, and none of the environment's tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    fake_adapter(tmp_path / "ants")
    fake_adapter(tmp_path / "bees" / "adapter", method="lora")
    fake_adapter(tmp_path / "other", id="1" * 16)
    return tmp_path


def serve(*adapters: str, port: int | None = None, **options: Any) -> ServeRequest:
    return prepare_serve(adapters, port=closed_port() if port is None else port, **options)


def refused(*adapters: str, **options: Any) -> tuple[str, ...]:
    """What is wrong, one sentence per mistake."""
    with pytest.raises(InputError) as caught:
        serve(*adapters, **options)
    found = sentences(caught.value)
    assert isinstance(caught.value, InputErrors) == (len(found) > 1)
    return found


def test_paths_are_absolute_and_hub_ids_stay(here):
    Path("tasks").mkdir()
    Path("link").symlink_to("tasks")
    Path("w.pth").write_bytes(b"")
    options: Any = {"tasks": Path("tasks"), "weights": Path("w.pth"), "image_root": Path("link")}
    request = serve("ants", "b=bees", "owner/name@v1", **options, batch_wait_ms=2.5)
    bees = str(here / "bees" / "adapter")
    assert request.adapters == (("ants", str(here / "ants")), ("b", bees), ("name", "owner/name@v1"))
    assert (request.folder, request.weights) == (here / "tasks", here / "w.pth")
    assert request.image_root == (here / "tasks").resolve()
    assert request.backbone_from == str(here / "ants")
    assert request.batch_seconds == 0.0025
    assert request.catalogue.names() == ["ants", "b", "name"]
    assert pickle.loads(pickle.dumps(request)) == request, "it goes to other processes"


def test_all_mistakes_are_named_at_once(here):
    fake_adapter(here / "full", method="full")
    paths = {name: Path(f"no-{name}") for name in ("tasks", "weights", "token_file")}
    counts = dict.fromkeys(("port", "replicas", "threads", "batch_size"), 0)
    limits = Limits(body_bytes=0, images=0, waiting=0, seconds=0, task_bytes=0)
    others = {"image_root": Path("ants/adapter_config.json"), "url_hosts": ("http://a", "b/c", "fine")}
    adapters = ("ants", "gone", "ä=bees", "ants=bees", "other", "full")
    found = refused(*adapters, **paths, **counts, **others, limits=limits, host="0.0.0.0", batch_wait_ms=-1.0)
    flags = "port replicas batch-size threads max-images max-waiting max-body-mb task-memory-mb timeout"
    words = (
        "There is no folder gone",
        "'ä' cannot name a task",
        "Two adapters are called ants: ants and bees/adapter",
        "--tasks no-tasks is no folder",
        "--image-root ants/adapter_config.json is no folder",
        "No weights file at no-weights",
        "--token-file no-token_file cannot be read (No such file",
        "--host 0.0.0.0 can be reached by other machines",
        "--batch-wait-ms -1 must",
        "--url-hosts http://a is no host",
        "--url-hosts b/c is no host",
        "full is of full fine-tuning",
        "other belongs to the backbone vit (1111111111111111), ants to vit (0000000000000000)",
        *(f"--{flag} " for flag in flags.split()),
    )
    assert [word for word in words if sum(word in sentence for sentence in found) != 1] == []
    assert len(found) == len(words)


def test_a_service_has_a_task(here):
    Path("tasks").mkdir()
    assert "No adapter is given" in refused()[0]
    assert "--tasks tasks holds no adapter" in refused(tasks=Path("tasks"))[0]
    assert len(refused("gone")) == 1 == len(refused(tasks=Path("gone")))
    assert serve("owner/name").backbone_from == "owner/name"


def test_a_name_is_one_adapters():
    assert serve("ants", "ants", "./ants").adapters == serve("ants").adapters
    assert [name for name, _ in serve("a=ants", "b=ants").adapters] == ["a", "b"]
    (found,) = refused("x=ants", "x=owner/name")
    assert "Two adapters are called x: ants and owner/name" in found


def test_the_first_adapter_decides_on_the_backbone(here):
    fake_adapter(here / "named", name="swin")
    request = serve("other", "owner/name")
    assert request.backbone_from == str(here / "other") == serve("owner/name", "other").backbone_from
    found = refused("ants", "bees", "named", "other")
    assert ["named" in found[0], "other" in found[1], len(found)] == [True, True, 2]
    assert all("ants to vit (0000000000000000)" in each and "start two" in each for each in found)


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"{}", b'{"backbone": 1}', b"\xff"])
def test_a_named_adapter_that_cannot_be_read_is_an_error(here, config):
    raw_adapter(here / "bad", config)
    (found,) = refused("bad", "ants")
    assert "bad/adapter_config.json" in found and "another copy" in found
    assert len(refused("bad")) == 1


def test_an_adapter_of_full_fine_tuning_is_refused(here):
    fake_adapter(here / "full", method="full")
    assert ["is of full fine-tuning" in each for each in refused("full", "ants")] == [True]
    fake_adapter(here / "tasks" / "aaa", method="full")
    fake_adapter(here / "tasks" / "bbb", id="1" * 16)
    request = serve(tasks=Path("tasks"))
    assert request.backbone_from == str(here / "tasks" / "bbb")
    assert [("aaa" in note, "full" in note) for note in request.notes] == [(True, True)]


def test_what_is_wrong_in_the_folder_is_a_note(here):
    tasks = here / "tasks"
    fake_adapter(tasks / "another", id="2" * 16)
    raw_adapter(tasks / "broken", b"{")
    fake_adapter(tasks / "full" / "adapter", method="full")
    fake_adapter(tasks / "good")
    raw_adapter(tasks / "named", b"")  # a named one is served in its place
    (tasks / "empty").mkdir()
    request = serve("named=ants", "b=owner/name", tasks=tasks)
    assert request.backbone_from == str(here / "ants")
    wrong = [name for name in ("another", "broken", "full") for note in request.notes if f"/tasks/{name}" in note]
    assert len(wrong) == len(request.notes) == 3
    assert len(refused("x=other", "named=ants", tasks=tasks)) == 1, "notes are no mistakes"


def test_a_folder_with_nothing_right_in_it_is_an_error(here):
    fake_adapter(here / "tasks" / "full", method="full")
    raw_adapter(here / "tasks" / "broken", b"{")
    found = refused(tasks=Path("tasks"))
    assert ["broken" in found[0], "full" in found[1], len(found)] == [True, True, 2]
    request = serve("owner/name", tasks=Path("tasks"))
    assert (request.backbone_from, len(request.notes)) == ("owner/name", 2)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "::ffff:127.0.0.1"])
def test_an_address_that_others_reach_needs_a_token(monkeypatch, host):
    found = [each for each in refused("ants", host=host) if "token" in each]
    assert len(found) == 1 and TOKEN_VARIABLE in found[0] and "--token-file" in found[0]
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert serve("ants", host="0.0.0.0").token == TOKEN
    assert ["cannot be listened on" in each for each in refused("ants", host="192.0.2.1")] == [True]


def test_this_machine_needs_no_token(monkeypatch):
    for host in ("127.0.0.1", "127.8.9.1", "localhost"):
        request = serve("ants", host=host)
        assert (request.host, request.token) == (host, None)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert serve("ants").token == TOKEN


@given(st.ip_addresses())
def test_loopback_is_127_and_colon_colon_1(address):
    assert is_loopback(str(address)) == (str(address).startswith("127.") or str(address) == "::1")


def test_a_file_with_the_token_goes_before_the_environment(here, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "f" * 16)
    Path("token").write_text(f" {TOKEN}\r\n")
    assert serve("ants", token_file=Path("token")).token == TOKEN
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    assert serve("ants", token_file=Path("token")).token == TOKEN


@pytest.mark.parametrize("token", NO_TOKENS)
def test_what_is_no_token_is_not_taken(here, monkeypatch, token):
    Path("token").write_text(token, encoding="utf-8")
    (found,) = refused("ants", token_file=Path("token"))
    assert "--token-file token" in found and (not token.strip() or token not in found)
    if "\0" not in token:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        (found,) = refused("ants")
        assert TOKEN_VARIABLE in found and (not token.strip() or token not in found)


@pytest.mark.parametrize("file", ["gone", "ants", "a\0b"])
def test_a_token_file_that_cannot_be_read_is_a_sentence(file):
    (found,) = refused("ants", token_file=Path(file))
    assert "cannot be read" in found


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_in_use_is_refused(monkeypatch, host):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = refused("ants", host=host, port=port)
    assert f"--host {host} --port {port} cannot be listened on" in found and "in use" in found
    assert serve("ants", host=host, port=port).port == port, "it is free again, and the check holds nothing"


@pytest.mark.parametrize("port", [-1, 0, 65536, 10**30])
def test_a_port_has_16_bits(port):
    assert [f"--port {port} must" in each for each in refused("ants", port=port)] == [True]


def test_threads_are_the_machines_among_the_replicas():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert serve("ants").threads == cores
    assert serve("ants", replicas=10**6).threads == 1
    assert serve("ants", replicas=10**6, threads=3).threads == 3


@pytest.mark.parametrize(
    ("limits", "wait", "flag"),
    [
        (Limits(seconds=float("nan")), 0.0, "--timeout"),
        (Limits(seconds=86_401), 0.0, "--timeout"),
        (Limits(seconds=-1), 0.0, "--timeout"),
        (Limits(body_bytes=-1), 0.0, "--max-body-mb"),
        (Limits(task_bytes=2**40), 0.0, "--task-memory-mb"),
        (Limits(images=-5), 0.0, "--max-images"),
        (Limits(), float("nan"), "--batch-wait-ms"),
        (Limits(), 10_001.0, "--batch-wait-ms"),
    ],
)
def test_limits_have_limits(limits, wait, flag):
    assert [each.startswith(flag) for each in refused("ants", limits=limits, batch_wait_ms=wait)] == [True]
    least = Limits(body_bytes=1, images=1, waiting=1, seconds=86_400, task_bytes=1)
    assert serve("ants", limits=least, batch_wait_ms=0.0).limits == least


@pytest.mark.parametrize("host", ["", "A.de", "a:", "a:b", ":80", "u@a", "a/b", "a?", "a#", "a\\b", "a\n", "[::1]"])
def test_a_host_of_images_is_a_name_or_a_name_and_a_port(host):
    assert [f"--url-hosts {host} is no host" in each for each in refused("ants", url_hosts=(host,))] == [True]
    fine = ("localhost", "a-b.example.com", "127.0.0.1:8080")
    assert serve("ants", url_hosts=fine).url_hosts == fine


@pytest.mark.parametrize("host", NO_HOSTS)
def test_a_host_is_an_address(host):
    assert not is_loopback(host)
    assert [f"--host {host} is no address" in each for each in refused("ants", host=host)] == [True]


def test_a_machine_without_ipv6_gets_a_sentence(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    port = closed_port()
    monkeypatch.setattr(socket, "socket", refuse)
    assert ["cannot be listened on" in each for each in refused("ants", host="::1", port=port)] == [True]


def test_an_empty_folder_is_named_beside_other_mistakes():
    Path("tasks").mkdir()
    found = refused(tasks=Path("tasks"), port=0)
    assert ["--port 0 must" in found[0], "holds no adapter" in found[-1], len(found)] == [True, True, 2]


def test_a_named_adapter_without_its_state_is_an_error(here):
    (here / "ants" / "adapter_model.safetensors").unlink()
    assert ["adapter_model.safetensors" in each for each in refused("ants", "bees")] == [True]


def test_an_adapter_without_its_state_in_the_folder_is_a_note(here):
    fake_adapter(here / "tasks" / "half")
    (here / "tasks" / "half" / "adapter_model.safetensors").unlink()
    assert ["half" in note for note in serve("ants", tasks=here / "tasks").notes] == [True]
    assert ["half" in each for each in refused(tasks=here / "tasks")] == [True]


def test_an_adapter_in_the_folder_that_no_address_can_name_is_a_note(here):
    fake_adapter(here / "tasks" / "my birds")
    assert ["my birds" in note for note in serve("ants", tasks=here / "tasks").notes] == [True]


def test_the_first_that_was_given_decides_on_the_backbone(here):
    assert serve("bees", "ants").backbone_from == str(here / "bees" / "adapter")


def test_an_unknown_device_is_a_mistake():
    assert ["'gpu'" in each for each in refused("ants", device="gpu")] == [True]

"""The device's peak, as far as it can be tested without a device: the process, its protocol, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from s2a_bench.cells import device_peak
from s2a_bench.cells.device_peak import Request
from s2a_bench.errors import InputError

REQUEST = Request("mini_vit", "s2a", {"lrp_rank": 4, "sites": (0, 1)}, batch_size=2)


def child(script: str) -> list[str]:
    return [sys.executable, "-c", script]


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_request_reaches_the_process_and_its_answer_comes_back():
    """Whatever else is printed, the last line counts."""
    script = "import json, sys; print('Downloading ...'); print(json.dumps({'device_mb': 1.5, **json.load(sys.stdin)}))"
    answer = device_peak.device_peak(REQUEST, child(script))
    assert answer["device_mb"] == 1.5
    assert answer["backbone"] == "mini_vit"
    assert answer["options"] == {"lrp_rank": 4, "sites": [0, 1]}
    assert answer["batch_size"] == 2


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import json; print(json.dumps({'error': 'No such thing; do that.'})); exit(2)", ["No such thing; do that."]),
        ("exit('Killed by chance')", ["s2a on mini_vit at batch size 2", "code 1", "Killed by chance"]),
        ("print('no JSON')", ["code 0", "it said nothing"]),
        ("print('3')", ["code 0"]),
        ("import os; print('{}', flush=True); os.kill(os.getpid(), 9)", ["code -9"]),
    ],
)
def test_a_process_that_fails_is_one_sentence(script, words):
    with pytest.raises(InputError) as caught:
        device_peak.device_peak(REQUEST, child(script))
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_process_that_hangs_is_ended():
    with pytest.raises(InputError, match="more than"):
        device_peak.device_peak(REQUEST, child("import time; time.sleep(60)"), timeout=0.5)


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_the_real_process_refuses_where_there_is_no_device():
    with pytest.raises(InputError, match="finds no CUDA device here; leave --device out"):
        device_peak.device_peak(REQUEST)


@pytest.mark.full
def test_the_real_process_refuses_a_request_that_is_none():
    text = '{"backbone": "mini_vit", "method": "s2a", "speed": 1}'
    done = subprocess.run(
        [sys.executable, "-m", "s2a_bench.cells.device_peak"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'speed'" in json.loads(done.stdout.splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("name", "word"), [("cpu", "--device cpu"), ("cuda", "finds no CUDA device"), ("gpu", "'gpu'"), ("", "''")]
)
def test_devices_without_a_peak_are_refused(no_cuda, name, word):
    with pytest.raises(InputError) as caught:
        device_peak.check_device(name)
    assert word in str(caught.value)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_peak.check_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(InputError, match=r"cuda:1 .* finds 1 CUDA device"):
        device_peak.check_device("cuda:1")


def test_what_counts_of_the_allocators_statistics():
    stats = {
        f"{kind}_bytes.all.{what}": 10**6 * n + (what == "peak")
        for n, kind in enumerate(("allocated", "requested", "reserved", "active"), 1)
        for what in ("current", "peak")
    }
    assert device_peak.peak_numbers(stats) == {
        "device_mb": 1.000001,
        "device_requested_mb": 2.000001,
        "device_reserved_mb": 3.000001,
    }


def test_the_statistics_have_the_names_that_are_read():
    """They are documented; where there is a device, they are really there."""
    for name in ("allocated_bytes", "requested_bytes", "reserved_bytes"):
        assert name in (torch.cuda.memory_stats.__doc__ or "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_device_the_three_numbers_agree():
    """The allocator's peak is the simulation's and what kernels need for themselves."""
    from s2a_bench.cells import measure

    answer = device_peak.device_peak(Request("vit_base_patch16_224", "bias", batch_size=8))
    adapted, _ = measure.blank("vit_base_patch16_224", "bias")
    simulated = measure.simulated(adapted.cuda(), measure.TrainConfig(batch_size=8))["simulated_mb"]
    assert simulated <= 1.02 * answer["device_mb"]
    assert answer["device_mb"] <= answer["device_reserved_mb"]
    assert answer["device_mb"] < 1.1 * simulated + 100

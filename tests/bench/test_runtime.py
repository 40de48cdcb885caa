"""One Ray for the sweeps of one command."""

from __future__ import annotations

import contextlib

import pytest
from s2a_bench.sweeps.ray import runtime
from s2a_bench.sweeps.workers import Workers


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """What would happen to Ray's processes."""
    happened: list[str] = []

    @contextlib.contextmanager
    def ray(workers: Workers, mark: str):
        happened.append(f"start {workers.count * workers.cpus}")
        if workers.count == 13:
            raise runtime.PoolError("no luck")
        try:
            yield
        finally:
            happened.append("end")

    monkeypatch.setattr(runtime, "own_ray", ray)
    return happened


def test_ray_starts_with_the_first_cells_and_again_only_for_more_room(events):
    with runtime.Engine() as engine:
        assert not events
        for count in (2, 2, 1, 3, 2):
            engine.start(Workers(count, 1), "mark")
    assert events == ["start 2", "end", "start 3", "end"]


def test_cards_are_room_too(events):
    with runtime.Engine() as engine:
        engine.start(Workers(2, 1), "mark")
        engine.start(Workers(1, 1, gpus=0.5), "mark")
    assert events == ["start 2", "end", "start 1", "end"]


def test_what_did_not_start_can_be_tried_again_and_an_error_ends_what_runs(events):
    with contextlib.suppress(KeyError), runtime.Engine() as engine:
        with pytest.raises(runtime.PoolError):
            engine.start(Workers(13, 1), "mark")
        engine.start(Workers(1, 1), "mark")
        raise KeyError
    assert events == ["start 13", "start 1", "end"]

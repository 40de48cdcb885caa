"""What a running sweep shows."""

from __future__ import annotations

import io

import pytest
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from s2a_bench.cells.recipes import train_config
from s2a_bench.cli import progress
from s2a_bench.cli.progress import HEARTBEAT, Lines, Tally, clock_text
from s2a_bench.config import CellConfig, DataConfig

CELLS = {
    "a": CellConfig(data=DataConfig(dataset="digits"), train=train_config("mini", "s2a", "mini_vit", epochs=2)),
    "b": CellConfig(data=DataConfig(dataset="count"), train=train_config("mini", "s2a", "mini_vit", epochs=6), seed=3),
}


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def text_console(**kwargs):
    return Console(file=io.StringIO(), width=200, **kwargs)


def written(console: Console) -> str:
    """What a text console was told."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_estimate_is_the_epochs_left_at_the_speed_so_far():
    clock = Clock()
    tally = Tally(CELLS, clock)
    tally.begin("b")
    clock.now += 1000  # imports
    tally.advance("b", {"epoch": 1})
    assert tally.remaining is None
    clock.now += 10
    tally.advance("b", {"epoch": 2})
    assert tally.fraction == 2 / 8
    assert tally.remaining == pytest.approx(60), "six epochs at ten seconds each"
    tally.end(make_record(cell_id="b", status="failed"))
    assert tally.fraction == 6 / 8, "a failed cell has no epochs left"
    tally.end(make_record(cell_id="a"))
    assert (tally.fraction, tally.remaining) == (1, 0)
    assert (tally.finished, tally.failed, tally.running) == (2, 1, {})


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6))))
def test_the_share_done_stays_between_none_and_all(events):
    tally = Tally(CELLS, Clock())
    for cell, epoch in events:
        tally.advance(cell, {"epoch": min(epoch, CELLS[cell].train.epochs)})
        assert 0 <= tally.fraction <= 1


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (200, "3:20"), (3725, "1:02:05")])
def test_clock_text(seconds, text):
    assert clock_text(seconds) == text


def test_lines_name_starts_ends_and_causes_and_now_and_then_show_life():
    clock, console = Clock(), text_console()
    lines = Lines(Tally(CELLS, clock), console, clock)
    lines.started("a")
    lines.epoch("a", {"epoch": 1, "loss": 1.0})
    clock.now += HEARTBEAT
    lines.epoch("a", {"epoch": 2, "loss": 0.5})
    lines.finished(make_record(cell_id="a", accuracy=87.65, seconds=61.0))
    lines.started("b")
    error = {"type": "Diverged", "message": "The loss is\nnan", "traceback": ""}
    lines.finished(make_record(cell_id="b", status="failed", accuracy=None, error=error))
    found = written(console).splitlines()
    assert found[0] == "[0/2] started s2a on digits, mini_vit, seed 0, train.epochs=2"
    assert found[1].startswith("[0/2] epoch 2/2 of s2a on digits")
    assert found[2].startswith("[1/2] done s2a on digits, mini_vit, seed 0, train.epochs=2: 87.7 % in 1:01")
    assert found[4].startswith("[2/2] FAILED s2a on count, mini_vit, seed 3, train.epochs=6: Diverged: The loss is nan")
    assert len(found) == 5


def test_bars_are_for_terminals_and_leave_the_results_behind():
    console = text_console(force_terminal=True)
    with progress.shown(CELLS, console) as bars:
        assert isinstance(bars, progress.Bars)
        bars.started("a")
        bars.epoch("a", {"epoch": 1, "loss": 1.5})
        bars.finished(make_record(cell_id="a", accuracy=87.65))
        bars.finished(make_record(cell_id="b", status="failed", accuracy=None, error=None))
    shown = written(console)
    assert "In all cells: mini_vit." in shown
    assert "done s2a on digits, seed 0, train.epochs=2: 87.7 %" in shown
    assert "FAILED s2a on count" in shown
    with progress.shown(CELLS, text_console()) as lines:
        assert isinstance(lines, Lines)

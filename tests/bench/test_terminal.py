"""What commands do with terminals, files and pipes of all kinds: widths, lines that change, help, closed pipes."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from s2a_bench.cli import common
from s2a_bench.cli.closed_pipe import CLOSED_PIPE, quiet_when_closed
from s2a_bench.cli.common import is_alive, make_console
from s2a_bench.cli.fitted_table import Column, fitting_columns, print_table
from s2a_bench.cli.help_text import wrap_help
from s2a_bench.cli.live import Heartbeat, LiveRows, Pace, Row, lay_out
from s2a_bench.cli.main import main
from s2a_bench.cli.progress import Bars, Tally, short_names
from s2a_bench.config import CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.sweeps.output_lock import only_writer
from s2a_bench.sweeps.plan import Plan
from s2a_bench.sweeps.stage import plan_sentence

ROWS = [
    Row("3/12 cells", 0.3, ["30 %", "1 failed", "about 3:20 left"], 0.0),
    Row(
        "  s2a:bits=8,lrp_rank=5,lsb_reduction=16 on clevr_count",
        0.5,
        ["3/10", "loss 1.234", "val 45.1 %", "9 MB"],
        1.0,
    ),
    Row("  linear on 日本語の犬と猫", 0.0, ["starting"], 60.0),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@given(st.integers(20, 200), st.integers(2, 6), st.booleans())
def test_lines_are_never_wider_than_the_terminal_nor_more_than_it_has(width, height, plain):
    lines = lay_out(ROWS * 2, width, height, 100.0, ascii_only=plain)
    assert len(lines) <= height
    assert all(cell_len(line.plain) <= width for line in lines)
    if height < 6:
        assert lines[-1].plain.strip() == f"and {7 - height} more"


def test_at_80_columns_loss_val_and_memory_are_there_and_on_wide_terminals_whole_names():
    narrow, wide = (lay_out(ROWS, width, 9, 100.0)[1].plain for width in (80, 150))
    for words in ("3/10", "loss 1.234", "val 45.1 %", "9 MB"):
        assert words in narrow and words in wide
    assert ROWS[1].name in wide and ROWS[1].name not in narrow


def test_names_say_what_differs_and_what_is_common_is_said_once():
    def cell(method, dataset, seed=0):
        train = TrainConfig(epochs=3, warmup_epochs=0)
        return CellConfig(data=DataConfig(dataset=dataset), method=MethodConfig(method), train=train, seed=seed)

    names, common_part = short_names({"a": cell("s2a", "digits"), "b": cell("linear", "digits")})
    assert names == {"a": "s2a on digits", "b": "linear on digits"}
    assert "mini_vit" in common_part and "seed 0" in common_part
    names, common_part = short_names({"a": cell("s2a", "digits"), "b": cell("s2a", "digits", 1)})
    assert names["a"].startswith("s2a on digits, seed 0") and "seed" not in common_part
    assert len({*short_names({str(i): cell("s2a", "digits") for i in range(2)})[0]}) == 2


def test_bars_show_every_running_cell_with_what_is_known_of_it():
    train = TrainConfig(epochs=4, warmup_epochs=0)
    cells = {str(i): CellConfig(data=DataConfig(dataset="digits"), train=train, seed=i) for i in range(3)}
    bars = Bars(Tally(cells, lambda: 0.0), Console(file=io.StringIO()), lambda: 0.0)
    bars.started("0")
    bars.started("1")
    bars.step("0", 3, 40)
    bars.epoch("1", {"epoch": 2, "loss": 0.5, "val_accuracy": 12.34, "peak_mb": 1234.5})
    whole, first, second = bars.rows()
    assert whole.name == "0/3 cells" and whole.share == pytest.approx((0.3 + 2) / 12)
    assert first.facts == ["1/4"] and first.share == pytest.approx(3 / 40)
    assert second.facts == ["2/4", "loss 0.500", "val 12.3 %", "1,234 MB"]


def test_a_pace_is_that_since_the_first_look():
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert pace.left() == ""
    pace.at(0.5)  # resumed
    now[0] = 10.0
    pace.at(0.6)
    assert pace.left() == "about 0:40 left"
    pace.at(1.0)
    assert pace.left() == ""


def test_a_heartbeat_speaks_after_silence_only():
    now, said = [0.0], []
    heart = Heartbeat(lambda: said.append(now[0]), 60.0, lambda: now[0])
    for now[0] in (30.0, 59.0, 60.0, 61.0, 119.0, 120.0):
        heart.beat()
    assert said == [60.0, 120.0]
    heart.stop()


def test_only_terminals_that_can_are_alive_and_colours_in_a_file_change_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    assert is_alive(make_console(Terminal()))
    monkeypatch.setenv("FORCE_COLOR", "1")
    in_file = make_console(io.StringIO())
    assert not is_alive(in_file) and in_file.width == common.PIPE_WIDTH
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    with LiveRows(make_console(terminal), lambda: ROWS).shown():
        pass
    assert "\x1b[3" not in terminal.getvalue().replace("\x1b[?25", ""), "moves, but has no colours"
    monkeypatch.setenv("TERM", "dumb")
    assert not is_alive(make_console(Terminal()))


COLUMNS = [Column("method", justify="left"), Column("batch"), Column("peak MB", 1), Column("GFLOP", 2)]
CELLS = [["s2a:activations=lean", "82", "1,234", "0.2"], ["linear", "311", "100", "0.1"]]


@pytest.mark.parametrize(("width", "kept"), [(80, [0, 1, 2, 3]), (42, [0, 1, 2]), (32, [0, 1]), (20, None)])
def test_columns_give_way_by_importance_and_it_is_said(width, kept):
    assert fitting_columns(COLUMNS, CELLS, width) == kept
    out = io.StringIO()
    print_table(Console(file=out, width=width), "", COLUMNS, CELLS)
    text = out.getvalue()
    assert ("Left out for the width" in text) == (kept is not None and len(kept) < 4)
    for row in CELLS:
        for place in kept or range(4):
            assert row[place] in text, "whole, in a column or a block"


def test_help_is_broken_between_words_at_any_width():
    words = "exit codes are zero where every cell is done and one where some cell failed, each of which is named."
    text = f"usage: s2a-bench [-h] {{{','.join(f'command{i}' for i in range(9))}}}\n\n{words}\n│ {'.' * 80} │"
    for width in (60, 80):
        found = wrap_help(text, width).split("\n")
        assert all(len(line) <= width for line in found if not line.startswith("│"))
        assert " ".join(found[2:-1]) == words and found[0] == "usage: s2a-bench [-h] COMMAND ..."


@pytest.mark.parametrize("command", ["", "sweep", "data prepare", "fits"])
def test_help_of_commands_fits_80_columns_and_names_no_default_that_is_none(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and max(map(len, text.splitlines())) <= 80
    assert not re.search(r"\(default:\s+(None|False)?\s*\)", text)


@pytest.mark.parametrize("arguments", [["sweep", "--help"], ["data", "list"]])
def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word(arguments):
    reads, writes = os.pipe()
    os.close(reads)  # as head after its last line
    found = subprocess.run([sys.executable, "-m", "s2a_bench", *arguments], stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    assert (found.returncode, found.stderr) == (CLOSED_PIPE, b"")


def test_another_broken_pipe_is_not_hidden():
    with pytest.raises(BrokenPipeError), quiet_when_closed():
        raise BrokenPipeError


def test_who_holds_a_folder_is_named_for_what_it_does(tmp_path):
    with only_writer(tmp_path, "fine-tuning"):
        with pytest.raises(InputError, match=rf"Another fine-tuning \(process {os.getpid()}\)"), only_writer(tmp_path):
            pass
    with only_writer(tmp_path), pytest.raises(InputError, match="Another sweep"), only_writer(tmp_path):
        pass


def test_one_cell_is_no_cells():
    cell = CellConfig(data=DataConfig(dataset="digits"))
    assert plan_sentence(Plan({"a": cell}, frozenset(), frozenset(), ())) == "1 cell: 0 done, 1 to run."
    assert plan_sentence(Plan({"a": cell, "b": cell}, frozenset("a"), frozenset(), ())) == "2 cells: 1 done, 1 to run."


@pytest.mark.parametrize("name", ["my/birds", "own/birds", "../birds", "/birds"])
def test_a_name_with_a_slash_is_refused_with_what_a_name_may_be(name, capsys, tmp_path):
    arguments = ["data", "prepare", name, "--from", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    assert main(arguments) == 2
    assert "1 to 64 letters, digits" in capsys.readouterr().err
    assert main(["data", "prepare", "vtab/cifr", "--from", str(tmp_path), "--data-dir", str(tmp_path / "data")]) == 2
    assert "cifr" in capsys.readouterr().err


def test_bad_images_are_told_of_without_torch(tmp_path):
    """Its import takes seconds; the sentence must not wait for it."""
    (tmp_path / "images" / "empty").mkdir(parents=True)
    (tmp_path / "images" / "other").mkdir()
    code = (
        "import sys; from s2a_bench.cli.main import main; "
        f"code = main(['finetune', {str(tmp_path / 'images')!r}, '--output', {str(tmp_path / 'out')!r}]); "
        "print(code, 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "2 False False"
    assert "image" in found.stderr and not (tmp_path / "out").exists()

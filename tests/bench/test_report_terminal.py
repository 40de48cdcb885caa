"""The report's table on a terminal: it fits, breaks no word, and says what it leaves out."""

from __future__ import annotations

import re

import pytest
from bench.factories import GROUPS, default_options, make_grid, make_record, only_section
from rich.cells import cell_len
from rich.console import Console
from s2a_bench.reports import tables, terminal


def shown(table, width):
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_terminal_table_fits_the_terminal():
    records = make_grid() + make_grid(["s2a"], method_config={"activations": "exact"})
    wide = shown(terminal.terminal_table(records, 200), 200)
    assert all(name.partition("_")[0] in wide for name in GROUPS)
    narrow = shown(terminal.terminal_table(records, 80), 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "texture" not in narrow.partition("In the report:")[0]
    for text in (wide, narrow):
        for method in ("full", "linear", "bias", "lora", "s2a", "610", "101.5"):
            assert method in text
        assert "…" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_terminal_tables_break_no_word_and_say_what_they_leave_out(width):
    usual = default_options()
    records = make_grid()
    for change in ({"lrp_rank": 5}, {"lsb_reduction": 0, "train_bias": False, "activations": "exact", "bits": 2}):
        records += make_grid(["s2a"], method_config=usual | change)
    text = shown(terminal.terminal_table(records, width), width)
    assert max(map(len, text.splitlines())) <= width
    section = only_section(records)
    words = [word for row in section.rows for word in row.label.split()]
    columns, _ = tables.fold_columns(section)
    titles = [word for column in columns for word in column.title.split()]
    for word in words:
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", text)
    for word in {*titles} - {"count", "sprite_count", "sprite_location"}:
        assert word.partition("_")[0] in text  # as a heading, or among what is left for the report
    assert "measured" in text


def test_terminal_says_what_failed_where_nothing_finished():
    text = shown(terminal.terminal_table([make_record(status="failed")], 80), 80)
    assert "No cell has finished; 1 failed." in text


def test_terminal_table_shows_names_literally():
    assert "[red]x[/red]" in shown(terminal.terminal_table(make_grid(["[red]x[/red]"])), 200)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_wide_characters_are_measured_as_the_terminal_shows_them(width):
    """A letter of these takes two places."""
    names = ["適応方法甲乙丙丁", "線形分類器の方法"]
    text = shown(terminal.terminal_table(make_grid(names), width), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for name in names:
        assert re.search(rf"^{name}(?!\S)", text, re.M)

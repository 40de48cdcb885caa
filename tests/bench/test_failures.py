"""Why a cell failed, in the same words on the terminal and in the report."""

from __future__ import annotations

import pytest
from bench.factories import make_record
from s2a_bench.cells.record import write
from s2a_bench.cli import progress
from s2a_bench.config import CellConfig
from s2a_bench.failures import cause
from s2a_bench.reports.build import build


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"type": "Diverged", "message": "The loss\n  is nan.", "traceback": ""}, "Diverged: The loss is nan."),
        ({"type": "KeyError", "message": ""}, "KeyError"),
        ({"message": "It broke."}, "It broke."),
        ({}, "no cause recorded"),
        (None, "no cause recorded"),
    ],
)
def test_a_cause_is_one_line_of_what_is_known(tmp_path, error, words):
    record = make_record(status="failed", error=error)
    assert cause(record) == words
    assert words in progress.ended(record, CellConfig())
    write(record, tmp_path)
    build(tmp_path)
    assert words in (tmp_path / "report.md").read_text().replace("\\", "")
    assert words in (tmp_path / "report.html").read_text()

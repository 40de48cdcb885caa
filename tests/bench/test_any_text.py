"""No character of a name, a title or a message ends a command: not on an ASCII terminal, not in a file's name."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest
from bench.factories import make_record
from s2a_bench.cells import record
from s2a_bench.cli.main import main
from s2a_bench.files import let_streams_take_any_text, write_atomic
from s2a_bench.reports.markdown import escape

pytestmark = pytest.mark.usefixtures("elsewhere")


class Streams:
    """Standard output and error of a terminal with some encoding, put in place within a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        self.out, self.err = io.BytesIO(), io.BytesIO()
        for name, stream in {"stdout": self.out, "stderr": self.err}.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, write_through=True))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_streams_take_what_their_encoding_cannot_say(encoding, monkeypatch):
    streams = Streams(monkeypatch, encoding)
    let_streams_take_any_text()
    print("a — b \udcff \N{GRINNING FACE}")
    print("a — b \udcff", file=sys.stderr)
    assert b"\\udcff" in streams.out.getvalue() and b"\\udcff" in streams.err.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_report_with_every_character_on_every_terminal(encoding, monkeypatch):
    streams = Streams(monkeypatch, encoding)
    failed = {"type": "Odd", "message": "größe — \udcff \N{GRINNING FACE}", "traceback": ""}
    out = Path("results").absolute()
    record.write(make_record(), out)
    record.write(make_record(cell_id="f" * 16, seed=7, status="failed", error=failed, accuracy=None), out)
    assert main(["report"]) == 0
    assert b"Report: " in streams.out.getvalue()
    assert "größe" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--datasets", "\udcff"],
        ["sweep", "--methods", "bias", "--weights", "\udcff.pth"],
        ["sweep", "--suite", "cifar", "--data-dir", "\udcff"],
        ["sweep", "--experiment", "\udcff.toml"],
        ["report", "--output", "\udcff"],
        ["track", "--output", "\udcff"],
        ["data", "verify", "caltech101", "--data-dir", "\udcff"],
        ["records", "--import", "\udcff.jsonl"],
        ["methods", "\udcff—"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_names_that_are_no_text_are_a_sentence(arguments, monkeypatch):
    streams = Streams(monkeypatch, "ascii")
    assert main(arguments) == 2
    lines = streams.err.getvalue().decode("ascii", "replace").splitlines()
    assert lines and all(line.startswith("s2a-bench: ") for line in lines)


def test_a_file_takes_names_that_are_no_text():
    write_atomic(Path("x"), os.fsdecode(b"a\xff"))
    assert Path("x").read_text(encoding="utf-8") == "a\\udcff"


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "![x](JavaScript:alert(1))",
        "<javascript:alert(1)>",
        "[x]: javascript:alert(1)",
        "<img src=x onerror=alert(1)>",
        "a | b\n| c |",
        "`code` **bold** ~~x~~ # head &lt;",
    ],
)
def test_markdown_shows_any_text_literally(text):
    """Every character with a meaning has a backslash, as CommonMark asks for it; no address is one that runs code."""
    shown = escape(text)
    assert re.sub(r"\\(.)", r"\1", shown) == " ".join(text.split())
    assert not re.search(r"(?<!\\)[`*_\[\]<>|#&~]", shown) and "javascript:" not in shown.lower()


def test_a_record_of_any_id_is_linked_where_records_lie(monkeypatch):
    from s2a_bench.reports import markdown

    link = markdown._record_link("x) [click](javascript:alert(1)")
    assert re.fullmatch(r"\[record\]\(records/[\w%.-]+\.json\)", link)

"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path

from s2a_bench.cli.main import main


def refused(capsys, *arguments):
    """The one sentence of a command that must be refused before anything runs."""
    assert main([*arguments]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("s2a-bench: ")
    assert err.count("\n") == 1
    assert not list(Path().rglob("*.json")), "nothing may have run"
    return err

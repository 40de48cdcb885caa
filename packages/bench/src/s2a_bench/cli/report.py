"""``s2a-bench report``: rebuilds the report from the records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from s2a_bench.cli.common import DONE, read_records, say_next


@dataclasses.dataclass(frozen=True)
class Report:
    """Rebuilds the report from the records.

    Attributes:
        output: Folder of a sweep.
    """

    output: Path = Path("results")

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: There are no records.
        """
        from s2a_bench.reports.build import build
        from s2a_bench.reports.terminal import terminal_table

        output = self.output.absolute()
        paths = build(output)
        width = console.width if console.is_terminal else None  # a file gets all columns
        console.print(terminal_table(read_records(output), width))
        say_next(console, f"Report: {paths.html}")
        return DONE

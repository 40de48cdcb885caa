"""``s2a-bench track``: rebuilds the MLflow store from the records."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rich.console import Console

from s2a_bench.cli.common import (
    DONE,
    SOME_FAILED,
    Uri,
    check_records,
    print_verbatim,
    say_next,
    show_command,
)


@dataclasses.dataclass(frozen=True)
class Track:
    """Rebuilds the MLflow store from the records.

    Attributes:
        output: Folder of a sweep.
        tracking_uri: MLflow store; <output>/mlflow.db if left out.
    """

    output: Path = Path("results")
    tracking_uri: Uri = None

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: There are no records, or the store cannot be used.
        """
        from s2a_bench.errors import Mistakes
        from s2a_bench.tracking import runs
        from s2a_bench.tracking.sqlite_uris import sqlite_uri
        from s2a_bench.tracking.store import check_installed, check_uri

        output = self.output.absolute()
        mistakes = Mistakes()
        with mistakes.collecting():
            check_installed()
        with mistakes.collecting():
            check_records(output)
        if self.tracking_uri is not None:
            with mistakes.collecting():
                check_uri(self.tracking_uri, output)
        mistakes.raise_all()
        try:
            count = runs.rebuild(output, self.tracking_uri)
        except runs.TrackingError as error:
            print(f"s2a-bench: {error}", file=sys.stderr)
            return SOME_FAILED
        print_verbatim(console, f"{count} records are in the store.")
        say_next(console, f"MLflow: {show_command(self.output, self.tracking_uri or sqlite_uri(output / 'mlflow.db'))}")
        return DONE

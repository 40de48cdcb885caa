"""``s2a-bench ui``: MLflow's pages of an output folder, in the browser."""

from __future__ import annotations

import dataclasses
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from s2a_bench.cli.common import DONE, SOME_FAILED, Number, check_records, print_verbatim

if TYPE_CHECKING:
    from s2a_bench.tracking.pages import Link

_MOST = 5
"""Sweeps that are listed besides the latest."""


@dataclasses.dataclass(frozen=True)
class Ui:
    """Shows the runs of an output folder in MLflow's pages: a row per cell. Ctrl-C ends it.

    Attributes:
        output: Folder of a sweep or of a fine-tuning.
        port: Of this machine; the first free one from 5000 if left out.
        no_browser: Only print the address. Where there is no terminal, no browser is opened either.
    """

    output: Path = Path("results")
    port: Number = None
    no_browser: bool = False

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: There are no records, MLflow is not installed, or the port is in use.
        """
        from s2a_bench.errors import Mistakes
        from s2a_bench.tracking import runs, server
        from s2a_bench.tracking.store import check_installed, open_store

        output, mistakes = self.output.absolute(), Mistakes()
        with mistakes.collecting():
            check_installed()
        with mistakes.collecting():
            check_records(output)
        port = server.FIRST_PORT
        with mistakes.collecting():
            port = server.choose_port(self.port)
        mistakes.raise_all()
        try:
            print_verbatim(console, f"Bringing MLflow's store in line with the records of {output} ...")
            store = open_store(None, output)
            runs.heal_alone(store)
            links = runs.list_sweeps(store)
            print_verbatim(console, "Starting MLflow's server ...")
            with server.run_server(store, port) as process:
                address = _print_links(console, f"http://{server.HOST}:{port}/", links)
                if not self.no_browser and console.is_terminal and sys.stdin.isatty():
                    webbrowser.open(address)
                server.wait(process)
        except KeyboardInterrupt:
            print_verbatim(console, "MLflow's server has ended.")
        except (runs.TrackingError, server.ServerStopped) as error:
            print(f"s2a-bench: {error}", file=sys.stderr)
            return SOME_FAILED
        return DONE


def _print_links(console: Console, base: str, links: Sequence[Link]) -> str:
    """Prints the addresses of the pages, the first of which is the one to open."""
    if not links:  # records of no sweep that is whole
        print_verbatim(console, f"MLflow: {base}")
        print_verbatim(console, "Press Ctrl-C to end.")
        return base
    first, *others = links
    print_verbatim(console, f"{first.title}")
    print_verbatim(console, f"  Table:  {base}{first.table}")
    print_verbatim(console, f"  Charts: {base}{first.charts}")
    for link in others[:_MOST]:
        print_verbatim(console, f"{link.title}")
        print_verbatim(console, f"  Table:  {base}{link.table}")
    if len(others) > _MOST:
        print_verbatim(console, f"Under Views on these pages, more of earlier sweeps: {len(others) - _MOST}.")
    print_verbatim(console, "Press Ctrl-C to end.")
    return base + first.table

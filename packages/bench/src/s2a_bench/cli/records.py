"""``s2a-bench records``: puts records of a file into an output folder, or an output folder's into a file."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

from rich.console import Console

from s2a_bench.cells import records_file
from s2a_bench.cli.common import DONE, File, argument, check_records, print_verbatim, read_records, say_next
from s2a_bench.errors import InputError


@dataclasses.dataclass(frozen=True)
class Records:
    """Records in one file: one JSON object a line, gzipped if its name ends so. Give --import or --export.

    Attributes:
        source: Put the records of this file into the folder; finished ones that are there stay.
        export: Write the folder's records to this file.
        output: Folder of a sweep.
    """

    source: Annotated[Path | None, argument("FILE", "import")] = None
    export: File = None
    output: Path = Path("results")

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: Flags, a file or a folder that cannot be used.
        """
        if (self.source is None) == (self.export is None):
            raise InputError("records either takes or gives: write --import FILE or --export FILE, one of them.")
        if self.source is not None:
            return import_records(self.source, self.output, console)
        assert self.export is not None
        return export_records(self.output, self.export, console)


def import_records(file: Path, output: Path, console: Console) -> int:
    """Puts the records of a file into an output folder.

    Raises:
        InputError: The file is not of records, or the folder cannot be written.
    """
    from s2a_bench.sweeps.output_lock import only_writer

    found = records_file.load(file)
    output = output.absolute()
    with only_writer(output, "import of records"):
        taken = records_file.import_records(found, output)
    kept = f", {len(taken.kept)} of cells that have another record here, which stayed" if taken.kept else ""
    print_verbatim(
        console,
        f"{len(found)} records in {file}: {len(taken.new)} written to {output}, {len(taken.same)} were there{kept}.",
    )
    say_next(console, f"Next: s2a-bench report --output {shlex.quote(str(output))}")
    return DONE


def export_records(output: Path, file: Path, console: Console) -> int:
    """Writes the records of an output folder to a file; files that are none are named and left out.

    Raises:
        InputError: There are none.
    """
    check_records(output)
    found = read_records(output)
    if not found:
        raise InputError(f"No file under {output / 'records'} is a valid record; nothing was written.")
    try:
        count = records_file.save(found, file.absolute())
    except OSError as error:
        raise InputError(f"Cannot write {file} ({error}).") from error
    print_verbatim(console, f"{count} records written to {file}.")
    say_next(console, f"Elsewhere: s2a-bench records --import {shlex.quote(str(file))} --output DIR")
    return DONE

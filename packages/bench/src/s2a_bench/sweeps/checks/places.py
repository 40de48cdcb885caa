"""Whether results can be written to an output folder: nothing on its path is a file, and nobody else's results go.

A sweep and a fine-tuning both write ``report.html``, so an output folder belongs to one of them. It is a fine-tuning's
where there are its metrics and its adapter; else a sweep's where there is the Markdown form of its report, or a record
of a cell that no fine-tuning has.
"""

from __future__ import annotations

from pathlib import Path

from s2a_bench.cells.record import Record, read_all
from s2a_bench.errors import InputError


def check_output(output: Path) -> None:
    """Checks that an output folder can be there: nothing on its path is a file.

    Raises:
        InputError: Something is, or its name is no text.
    """
    try:
        str(output).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"The name of output folder {str(output)!r} is no UTF-8 text, as the report and MLflow need it; pass "
            "another one to --output."
        ) from None
    nearest = next(path for path in (output, *output.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(
            f"Cannot write to output folder {output} ({nearest} is a file); pass a writable one to --output."
        )


def check_place_of_sweep(output: Path) -> None:
    """Refuses the output folder of a fine-tuning, whose page the report of a sweep would replace.

    Raises:
        InputError: It is one.
    """
    if _is_of_finetuning(output):
        raise InputError(
            f"{output} holds a fine-tuning, whose page {output / 'report.html'} the report of a sweep would replace; "
            "open that page, or pass another folder to --output (s2a-bench records copies records to one)."
        )


def check_place_of_finetuning(output: Path) -> None:
    """Refuses the output folder of a sweep, whose report the page of a fine-tuning would replace.

    Raises:
        InputError: It is one.
    """
    if not _is_of_finetuning(output) and _is_of_sweep(output):
        raise InputError(
            f"{output} holds a sweep, whose report {output / 'report.html'} the page of a fine-tuning would replace; "
            "pass another folder to --output."
        )


def _is_of_finetuning(output: Path) -> bool:
    return (output / "metrics.json").is_file() and (output / "adapter").is_dir()


def _is_of_sweep(output: Path) -> bool:
    if (output / "report.md").is_file():
        return True
    records = (found for _, found in read_all(output) if isinstance(found, Record))
    return any((each.suite, each.evaluated_on) != ("own", "select") for each in records)

"""What can be wrong with how a sweep is run: output folder, workers, cluster, search. Found without torch."""

from __future__ import annotations

from pathlib import Path

from s2a_bench.cells.outputs import check_no_finetuning
from s2a_bench.data.table.lookup import check_images
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.sweeps.checks.effects import check_sweep_options, find_datasets
from s2a_bench.sweeps.request import Request, RunOptions
from s2a_bench.sweeps.search.choice import Mode
from s2a_bench.sweeps.search.run_search import check_scheduler
from s2a_bench.sweeps.workers import check_max_concurrent


def check_options(mistakes: Mistakes, options: RunOptions, request: Request, mode: Mode | None) -> None:
    """Checks everything about how a sweep is run that is known without torch.

    Args:
        mistakes: Where what is wrong is added.
        options: How the sweep is run.
        request: What is run.
        mode: Of the search, if there is one.
    """
    check_sweep_options(mistakes, request, options, searches=mode is not None)
    mistakes.each(
        lambda dataset: check_images(dataset, request.evaluate, searches=mode is not None), find_datasets(request)
    )
    with mistakes.collecting():
        check_output(options.keep.output)
        check_no_finetuning(options.keep.output)
    with mistakes.collecting():
        check_max_concurrent(options.resources.max_concurrent)
    with mistakes.collecting():
        options.resources.check(request.device)
    if mode is not None:
        with mistakes.collecting():
            check_scheduler(mode, options)


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
    if "\0" in str(output):
        raise InputError(f"--output {str(output)!r} has a zero byte in it, which no path can have; give another one.")
    nearest = next(path for path in (output, *output.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(
            f"Cannot write to output folder {output} ({nearest} is a file); pass a writable one to --output."
        )

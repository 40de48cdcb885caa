"""What can be wrong with how a sweep is run: output folder, workers, cluster, search. Found without torch."""

from __future__ import annotations

from s2a_bench.data.table.lookup import check_images
from s2a_bench.errors import Mistakes
from s2a_bench.sweeps.checks.effects import check_sweep_options, find_datasets
from s2a_bench.sweeps.checks.places import check_output, check_place_of_sweep
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
        check_place_of_sweep(options.keep.output)
    with mistakes.collecting():
        check_max_concurrent(options.resources.max_concurrent)
    with mistakes.collecting():
        options.resources.check(request.device)
    if mode is not None:
        with mistakes.collecting():
            check_scheduler(mode, options)
